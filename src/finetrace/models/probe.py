"""Is the head understood? Logits recomputed from final hidden states against the model's own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.core.errors import ModelError
from finetrace.models.pair import Pair


def check_head(pair: Pair, *, count: int = 8, seed: int = 0) -> None:
    """A ModelError unless the head, fed the final hidden states of random tokens, gives each side's own logits.

    Largest difference over largest logit: at most 1e-3 in float32, 5e-2 in half precision (the model's own rounding).
    """
    ids = _probe_ids(pair, count, seed)
    limit = 1e-3 if pair.dtype == torch.float32 else 5e-2
    for side in pair.sides:
        own = _model_logits(pair, side, ids)
        hidden = pair.trunk(side, ids, torch.ones_like(ids)).final
        if hidden is None:
            raise ModelError(f"The final hidden states of '{side}' could not be read.")
        ours = pair.head(side).logits(hidden.reshape(-1, hidden.shape[-1])).float()
        off = float((ours - own).abs().max()) / max(float(own.abs().max()), 1e-30)
        if not off <= limit:
            raise ModelError(
                f"The head of this architecture is not understood on side '{side}': logits recomputed from the final "
                f"hidden states differ from the model's own by {off:.1e} of the largest, more than {limit:.0e}."
            )


def _probe_ids(pair: Pair, count: int, seed: int) -> Int[Tensor, "batch pos"]:
    picks = torch.randint(pair.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))
    shared = pair.shared_ids
    return (picks if shared is None else shared[picks]).to(pair.device)


def _model_logits(pair: Pair, side: str, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "row vocab"]:
    """The plain model's logits over the shared vocabulary, float32."""
    rows, theirs = pair.rows(side), pair.translated(side, ids).to(pair.place(side).device)
    with pair.open(side) as model, torch.inference_mode():
        logits = model(input_ids=theirs, attention_mask=torch.ones_like(theirs), use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1]).float().to(pair.device)
    return logits if rows is None else logits[:, rows.to(logits.device)]
