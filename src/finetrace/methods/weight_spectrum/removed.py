"""Was one direction taken out of what the layers write, as "abliteration" does to refusals?

Taking the unit direction v out of a matrix W that writes to the residual stream is W <- W - v v^T W: in every such matrix
a change of rank one, with the same output direction, whose other side is -v^T W itself. The three are measured apart, and
together as the share of the writers' squared change that -a v v^T W explains at its best a. Only scalars leave this file:
the direction is how the edit is repeated on another model.

Arditi et al. 2024 (arXiv:2406.11717).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.methods.weight_spectrum.figures import Change
from finetrace.weights.delta import Delta, Matrix

FLAG = 0.5
"""Explained share from which the change is called a removed direction. Trained changes stay near 0."""
_FEWEST = 2
_ROWS = 1 << 10


@dataclass(frozen=True)
class Removed:
    """Over the changed matrices that write to the residual stream.

    writers: how many. shared: share of their squared change along the one output direction that they share most. cosine:
    between that part of the change and -v^T W, over all writers together, from -1 to 1. explained: shared * cosine^2 where
    the cosine is positive. removed: the best a, 1 where the direction is gone altogether. own: as `explained`, with every
    matrix's own first direction in place of a shared one.
    """

    writers: int
    shared: float
    cosine: float
    explained: float
    removed: float
    own: float

    @property
    def flagged(self) -> bool:
        return self.writers >= _FEWEST and max(self.explained, self.own) >= FLAG


def removed(pairs: Sequence[tuple[Change, Delta]], weight: Callable[[str], Matrix]) -> Removed | None:
    """weight: module -> base weight [out, in]. None where no matrix that writes to the residual stream changed."""
    writers = [(change, delta) for change, delta in pairs if change.place.role == "writes"]
    if not writers:
        return None
    shared = _shared_direction([change for change, _ in writers])
    total = math.fsum(change.square for change, _ in writers)
    along, own = _Part(), 0.0
    for change, delta in writers:
        base = weight(change.place.module)
        along.add(_part(delta, base, shared))
        alone = _part(delta, base, change.spectrum.left[:, 0])
        own += alone.explained
    return Removed(
        writers=len(writers),
        shared=min(1.0, along.square / total),
        cosine=along.cosine,
        explained=min(1.0, along.explained / total),
        removed=-along.dot / along.weight_square if along.weight_square > 0 else 0.0,
        own=min(1.0, own / total),
    )


@dataclass
class _Part:
    """Of v^T D and v^T W: their squared lengths and inner product, summed over matrices."""

    square: float = 0.0
    weight_square: float = 0.0
    dot: float = 0.0

    def add(self, other: _Part) -> None:
        self.square += other.square
        self.weight_square += other.weight_square
        self.dot += other.dot

    @property
    def cosine(self) -> float:
        """Of v^T D with -v^T W."""
        size = math.sqrt(self.square * self.weight_square)
        return max(-1.0, min(1.0, -self.dot / size)) if size > 0 else 0.0

    @property
    def explained(self) -> float:
        """How much of the squared change -a v v^T W takes away, at its best a >= 0."""
        return self.square * max(0.0, self.cosine) ** 2


def _part(delta: Delta, weight: Matrix, direction: Float[Tensor, "out"]) -> _Part:
    moved = delta.along_output(direction[None])[0].double()
    base = torch.zeros_like(moved)
    for start in range(0, delta.shape[0], _ROWS):
        rows = weight[start : start + _ROWS].double()
        base += direction[start : start + _ROWS].double() @ rows
    return _Part(float(moved.square().sum()), float(base.square().sum()), float(moved @ base))


def _shared_direction(changes: Sequence[Change]) -> Float[Tensor, "out"]:
    """The output direction that the writers' first directions share most, every matrix counted alike; a unit vector."""
    firsts = torch.stack([change.spectrum.left[:, 0] for change in changes])
    return torch.linalg.svd(firsts, full_matrices=False).Vh[0]
