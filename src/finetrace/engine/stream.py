"""The texts as steps, on demand: for a method that trains on hidden states, or reads them again once it has trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from finetrace.data import Corpus, batches, shards
from finetrace.engine.observer import Contrast
from finetrace.engine.run import on_device, other_side, step_of
from finetrace.engine.shape import Shape
from finetrace.engine.states import States, read
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
    states: States | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Step]:
    """One reading of the corpus, a batch at a time, through both models up to the deepest of `layers`.

    The forwards are those of the pass: same batches, so the same states to the last bit. shuffled: a seed to take shards in
    another order by (None: as they come); what is in a shard comes together. states: how they are stored; what is stored is
    read, in place of forwards, and what is not is rounded alike. advance: called with the tokens of each batch that is done.
    """
    wanted = tuple(sorted({layer_index(layer, pair.n_layers) for layer in layers}))
    held = None if states is None else states.cache(contrast, wanted)
    cut = list(shards(corpus, shape.shard_tokens))
    if shuffled is not None:
        order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(shuffled))
        cut = [cut[i] for i in order.tolist()]
    for shard in cut:
        done = 0
        for batch in batches(corpus, shard, shape.batch_size):
            moved, tokens = on_device(batch, pair.device), int(batch.attention.sum())
            with torch.inference_mode():
                if held is not None:
                    base, other = read(held, shard, done, moved, wanted, pair.dtype)
                else:
                    base = pair.trunk("base", moved.ids, moved.attention, wanted, False)
                    other = other_side(pair, contrast, moved, wanted, False)
                    if states is not None:
                        base, other = states.rounded(base, other, moved)
            yield step_of(moved, base, other)
            done += tokens
            advance(tokens)
