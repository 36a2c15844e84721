"""Hidden states on disk: what a cache of them is made from, how it is written, and its rows as the steps they came from.

A token has two rows of numbers. Where the stored type holds what the models run in, they are base and tuned, to the last bit.
Where it is coarser they are the base and tuned - base: two states that are rounded each by itself would leave of a small
change only the difference of their roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.errors import DataError
from finetrace.core.runkey import digest
from finetrace.data import Batch, Corpus, Shard, batches, shards
from finetrace.engine import journal
from finetrace.engine.observer import Contrast
from finetrace.engine.run import on_device, other_side
from finetrace.engine.shape import Shape
from finetrace.models import Hidden, Pair
from finetrace.store.activations import Activations, ActivationsWriter, Layout, Where
from finetrace.store.keeping import is_exact
from finetrace.store.layout import DTYPES

__all__ = ["States", "layout_of", "made_of", "read", "write"]


def made_of(
    pair: Pair, corpus: Corpus, side: str, shape: Shape, dtype: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What moves the states of the base and `side`. settings: those of the models that the pair does not tell."""
    return {
        "base": pair.identity("base"),
        "tuned": pair.identity(side),
        "tokenizer": pair.tokenizer_identity(),
        "texts": corpus.identity,
        "batch_size": shape.batch_size,
        "shard_tokens": shape.shard_tokens,
        "runs_in": str(pair.dtype).removeprefix("torch."),
        "device": pair.device_type,
        "rows": ["base", "tuned" if is_exact(pair.dtype, dtype) else "tuned - base"],
    } | dict(settings)


def layout_of(pair: Pair, corpus: Corpus, layers: Sequence[int], dtype: str) -> Layout:
    return Layout(
        tuple(sorted(set(layers))),
        pair.d_model,
        corpus.slices,
        "float32" if dtype == "float32" else "bfloat16",
    )


def write(
    pair: Pair,
    corpus: Corpus,
    contrast: Contrast,
    shape: Shape,
    into: tuple[Path, Mapping[str, Any], Layout],
    *,
    advance: Callable[[int], None] = lambda tokens: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Activations:
    """Every token of the corpus, in the pass's own batches and order. into: the folder of caches, what this one is made
    from, its layout. Shards that are there whole, from a run that was killed, are kept if they were made on what this runs on:
    another processor may move a last bit."""
    root, made_from, layout = into
    where = journal.environment(pair.device, shape.batch_size)
    with ActivationsWriter(root, made_from, layout, rows=corpus.n_tokens) as writer:
        for index in writer.redone:
            tell(f"Shard {index} of the hidden states in {writer.folder} was not whole, and is made again.")
        for shard in shards(corpus, shape.shard_tokens):
            mark = digest([shard.content, where])
            if writer.has(shard.index, mark):
                advance(sum(len(corpus.tokens[row]) for row in range(shard.start, shard.stop)))
                continue
            for batch in batches(corpus, shard, shape.batch_size):
                moved = on_device(batch, pair.device)
                with torch.inference_mode():
                    base = pair.trunk("base", moved.ids, moved.attention, layout.layers, False)
                    other = other_side(pair, contrast, moved, layout.layers, False)
                    real = moved.attention.bool()
                    held = {
                        layer: _packed(base.layers[layer][real], other.layers[layer][real], layout.dtype)
                        for layer in layout.layers
                    }
                writer.add(_where(batch), held)
                advance(len(next(iter(held.values()))))
            writer.cut(shard.index, mark)
    return Activations(writer.folder)


@dataclass(frozen=True)
class States:
    """Hidden states as they are stored, whether they are read or made: a figure does not depend on what is on the disk.

    dtype: of the store. caches: side -> what is stored of the base and that side, at its own scale.
    """

    dtype: str
    caches: Mapping[str, Activations] = field(default_factory=dict)

    def cache(self, contrast: Contrast, layers: Sequence[int]) -> Activations | None:
        """The cache that holds a contrast at all of `layers`."""
        found = self.caches.get(contrast.side)
        plain = contrast.scale == 1.0 and not contrast.echo
        return found if found is not None and plain and set(layers) <= set(found.layout.layers) else None

    def rounded(self, base: Hidden, other: Hidden, batch: Batch) -> tuple[Hidden, Hidden]:
        """Both sides as they would come back from the disk; 0 where there is padding."""
        real = batch.attention.bool()
        rows = {
            layer: _packed(states[real], other.layers[layer][real], self.dtype)
            for layer, states in base.layers.items()
        }
        return _sides(rows, real, next(iter(base.layers.values())).dtype)


def read(
    held: Activations, shard: Shard, start: int, batch: Batch, layers: Sequence[int], dtype: torch.dtype
) -> tuple[Hidden, Hidden]:
    """A batch's hidden states: the rows of the shard from `start` on. dtype: what the models run in."""
    real = batch.attention.bool()
    stop = start + int(batch.attention.sum())
    there, wanted = held.where(shard.index), _where(batch)
    for name in ("row", "position"):
        if not torch.equal(getattr(there, name)[start:stop].long(), getattr(wanted, name).long().cpu()):
            raise DataError(
                f"The rows of {held.folder} are in another order than the texts: delete the folder and store the hidden "
                "states again."
            )
    rows = {layer: held.states(shard.index, layer)[start:stop].to(real.device) for layer in layers}
    return _sides(rows, real, dtype)


def _packed(
    base: Float[Tensor, "row d"], other: Float[Tensor, "row d"], dtype: str
) -> Float[Tensor, "row two d"]:
    second = other if is_exact(base.dtype, dtype) else other.float() - base.float()
    return torch.stack([base.to(DTYPES[dtype]), second.to(DTYPES[dtype])], 1)


def _sides(
    rows: Mapping[int, Float[Tensor, "row two d"]], real: Tensor, run: torch.dtype
) -> tuple[Hidden, Hidden]:
    """Rows of tokens back in their places. run: what the models run in; states are float32 where the store is coarser."""
    base: dict[int, Tensor] = {}
    other: dict[int, Tensor] = {}
    for layer, held in rows.items():
        exact = is_exact(run, str(held.dtype).removeprefix("torch."))
        one, two = held.unbind(1) if exact else held.float().unbind(1)
        for side, states in ((base, one), (other, two if exact else one + two)):
            side[layer] = torch.zeros(
                *real.shape, held.shape[-1], dtype=run if exact else torch.float32, device=real.device
            )
            side[layer][real] = states.to(side[layer].dtype)
    return Hidden(None, base), Hidden(None, other)


def _where(batch: Batch) -> Where:
    """Of every token of a batch, row by row."""
    text, position = batch.attention.bool().nonzero(as_tuple=True)
    return Where(batch.row[text], position, batch.role[text, position], batch.slice[text])
