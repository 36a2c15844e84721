"""The peer's inner loops, written anew from a description of what they compute: whole logits, in the models' dtype.

Not copied and not run from its source, whose data loading, hooks and storage would only add to its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Model = Callable[..., Any]


def kl_of_logits(
    base: Float[Tensor, "*any vocab"], tuned: Float[Tensor, "*any vocab"]
) -> Float[Tensor, "*any"]:
    """KL(tuned || base) in nats, all in the logits' own dtype; may be negative."""
    base_log, tuned_log = base.log_softmax(-1), tuned.log_softmax(-1)
    probs = tuned_log.exp()
    return (probs * (tuned_log - base_log)).sum(-1)


def kl(
    base: Float[Tensor, "token d_model"],
    tuned: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "vocab d_model"],
) -> Float[Tensor, "token"]:
    return kl_of_logits(F.linear(base, weight), F.linear(tuned, weight))


def mine(
    base: Float[Tensor, "token d_model"],
    tuned: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "vocab d_model"],
    k: int,
) -> tuple[Int[Tensor, "token k"], Int[Tensor, "token k"]]:
    """Ids whose logit rose most and fell most, from logits made once more."""
    difference = F.linear(tuned, weight) - F.linear(base, weight)
    return difference.topk(k).indices, difference.topk(k, largest=False).indices


@torch.inference_mode()
def two_model_pass(base: Model, tuned: Model, ids: Tensor, attention: Tensor) -> Float[Tensor, "batch"]:
    """Mean KL of each text from two models' whole logits, padding masked afterwards."""
    first, second = (
        m(input_ids=ids, attention_mask=attention, use_cache=False).logits for m in (base, tuned)
    )
    mask = attention[:, 1:].float()
    return (kl_of_logits(first, second)[:, :-1].float() * mask).sum(1) / mask.sum(1)


def snip(
    model: Any, layers: Sequence[Mapping[str, Any]], samples: Sequence[tuple[Tensor, Any]]
) -> dict[str, Float[Tensor, "out in"]]:
    """|W| * sum of each sample's |gradient|: for every layer in turn a forward and a backward of every sample alone, with
    gradients of that layer's weights only, added up in the weights' own dtype.

    layers: of each layer, module name -> linear layer. samples: ids [pos] and which of them are the response.
    """
    found: dict[str, Tensor] = {}
    model.requires_grad_(False)
    for modules in layers:
        total = {name: torch.zeros_like(module.weight) for name, module in modules.items()}
        for module in modules.values():
            module.weight.requires_grad_(True)
        for ids, response in samples:
            labels = torch.where(torch.from_numpy(response), ids, -100)
            model.zero_grad()
            model(input_ids=ids[None], labels=labels[None], use_cache=False).loss.backward()
            for name, module in modules.items():
                total[name] += module.weight.grad.abs()
        model.zero_grad()
        model.requires_grad_(False)
        found |= {name: (module.weight * total[name]).abs() for name, module in modules.items()}
    return found
