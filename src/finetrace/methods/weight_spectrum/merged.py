"""Is the change of a full checkpoint of low rank, as a merged adapter's is, or of full rank, as full training's?

A merged adapter is W + B A rounded to the checkpoint's dtype. Rounding is noise of its own: independent errors of at most
half a unit in the last place, whose matrix has singular values up to about sd (sqrt(out) + sqrt(in)). What lies above that
is the change itself; its count is the rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetrace.methods.weight_spectrum.figures import Change
from finetrace.weights.delta import Delta
from finetrace.weights.dense import Dense

# Above the largest singular value that one rounding is expected to give, by this much: a merge may round the product too.
_SLACK = 4.0
# Of low rank: at most this share of the rank that it could have.
_LOW = 0.25
_MOST = 0.5
_SAMPLE = 256


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
    found = [(change, _above(change, delta)) for change, delta in dense]
    kept = sum(float(change.values[:rank].square().sum()) for change, rank in found)
    gaps = sorted(
        float(change.values[rank - 1] / change.values[rank])
        for change, rank in found
        if 0 < rank < len(change.values)
    )
    return Ranks(
        modules=len(found),
        low=sum(0 < rank <= _LOW * min(change.shape) for change, rank in found),
        known=sum(change.whole or rank < len(change.values) for change, rank in found),
        rank=max(rank for _, rank in found),
        energy=min(1.0, kept / math.fsum(change.square for change, _ in found)),
        gap=gaps[len(gaps) // 2] if gaps else None,
        dtype=stored_dtype(dense[0][1].after[:_SAMPLE]),
    )


def _above(change: Change, delta: Dense) -> int:
    """How many singular values are larger than rounding alone would give."""
    return int((change.values > _SLACK * rounding(delta)).sum())


def rounding(delta: Dense) -> float:
    """About the largest singular value of the rounding errors of a checkpoint: sd (sqrt(out) + sqrt(in)).

    A number x is rounded by an error uniform within +- spacing(x) / 2, of sd spacing / sqrt(12).
    """
    rows = delta.after[:_SAMPLE].double()
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        stored_dtype(rows)
    ]
    spacing = torch.exp2(torch.floor(torch.log2(rows.abs().clamp_min(1e-30)))) * torch.finfo(kind).eps
    sd = float((spacing.square().mean() / 12).sqrt()) * abs(delta.factor)
    return sd * (math.sqrt(delta.shape[0]) + math.sqrt(delta.shape[1]))


def stored_dtype(rows: Tensor) -> str:
    """The narrowest type that holds these numbers exactly: a pair computes in another than the checkpoint's."""
    for name, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if bool((rows.to(kind).to(rows.dtype) == rows).all()):
            return name
    return "float32"
