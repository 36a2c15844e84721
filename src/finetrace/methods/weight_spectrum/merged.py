"""Is the change of a full checkpoint of low rank, as a merged adapter's is, or of full rank, as full training's?

A merged adapter is W + B A rounded to the checkpoint's dtype: few singular values stand above the rounding, in every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetrace.methods.weight_spectrum.figures import Change
from finetrace.methods.weight_spectrum.rounding import stored_dtype
from finetrace.weights.delta import Delta
from finetrace.weights.dense import Dense

# Of low rank: at most this share of the rank that it could have.
_LOW = 0.25
_MOST = 0.5


@dataclass(frozen=True)
class Ranks:
    """How a checkpoint without an adapter's file may have come about.

    rank: the largest over its changed matrices of the number of singular values above rounding; modules: how many were
    looked at; low: how many of them have a rank of at most a quarter of the possible; known: in how many the rank was
    reached within the singular values computed. energy: share of the squared change within the rank, over all modules;
    gap: the median over modules of the last value above rounding over the next one, None where there is none.
    dtype: the precision in which the weights lie, by their own numbers.
    """

    modules: int
    low: int
    known: int
    rank: int
    energy: float
    gap: float | None
    dtype: str

    @property
    def merged(self) -> bool:
        """Every changed matrix is of low rank, and most of its change is within it: what a merged adapter leaves."""
        return self.modules > 0 and self.low == self.modules == self.known and self.energy >= _MOST


def ranks(pairs: Sequence[tuple[Change, Delta]]) -> Ranks | None:
    """Of the changes that come as two matrices side by side; None where there are none (an adapter says its own rank)."""
    dense = [(change, delta) for change, delta in pairs if isinstance(delta, Dense)]
    if not dense:
        return None
    found = [change for change, _ in dense]
    kept = sum(float(one.values[: one.rank].square().sum()) for one in found)
    gaps = sorted(
        float(one.values[one.rank - 1] / one.values[one.rank])
        for one in found
        if 0 < one.rank < len(one.values)
    )
    return Ranks(
        modules=len(found),
        low=sum(0 < one.rank <= _LOW * min(one.shape) for one in found),
        known=sum(one.whole or one.rank < len(one.values) for one in found),
        rank=max(one.rank for one in found),
        energy=min(1.0, kept / math.fsum(one.square for one in found)),
        gap=gaps[len(gaps) // 2] if gaps else None,
        dtype=stored_dtype(dense[0][1].after),
    )
