"""The texts as steps, on demand: for a method that trains on hidden states, or reads them again once it has trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from finetrace.data import Corpus, batches, shards
from finetrace.engine.observer import Contrast
from finetrace.engine.run import on_device, other_side, step_of
from finetrace.engine.shape import Shape
from finetrace.engine.step import Step
from finetrace.models import Pair, layer_index

__all__ = ["stream"]


def stream(
    pair: Pair,
    corpus: Corpus,
    contrast: Contrast,
    layers: Sequence[int | float],
    shape: Shape,
    *,
    shuffled: int | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Step]:
    """One reading of the corpus, a batch at a time, through both models up to the deepest of `layers`.

    The forwards are those of the pass: same batches, so the same states to the last bit. shuffled: a seed to take shards in
    another order by (None: as they come); what is in a shard comes together. advance: called with the tokens of each batch
    that is done.
    """
    wanted = tuple(sorted({layer_index(layer, pair.n_layers) for layer in layers}))
    cut = list(shards(corpus, shape.shard_tokens))
    if shuffled is not None:
        order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(shuffled))
        cut = [cut[i] for i in order.tolist()]
    for shard in cut:
        for batch in batches(corpus, shard, shape.batch_size):
            moved = on_device(batch, pair.device)
            with torch.inference_mode():
                base = pair.trunk("base", moved.ids, moved.attention, wanted, False)
                other = other_side(pair, contrast, moved, wanted, False)
            yield step_of(moved, base, other)
            advance(int(batch.attention.sum()))
