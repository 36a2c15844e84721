"""Within-stratum permutation of two groups of matched weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray

# Signs held at once.
_BLOCK = 1 << 22


def swap_pairs(
    treated: FloatArray,
    control: FloatArray,
    matrix: NDArray[np.int64],
    *,
    blocks: NDArray[np.int64] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> float | None:
    """Two-sided p-value of "the labels of matched pairs mean nothing", for the pooled log ratio of root mean squares.

    treated, control: squared drift of each pair's members, [pair]; a pair lies within one stratum. matrix: [pair], from 0.
    Each draw swaps the members of pairs at random and computes sum_m w_m theta_m anew, w_m by a matrix's pairs;
    p = (1 + as extreme) / (1 + draws). blocks: [pair], pairs of one block are swapped together or not at all.

    It is exact where members of a pair (of a block) are exchangeable. Entries of one low-rank update are not, one by one:
    a column that moved more did so in all rows at once. So the blocks should be whole columns of a matrix. Of 150 runs of
    pure low-rank noise, with groups that gather in columns, 37% had p < 0.05 with entries as blocks and 7% with columns.
    None without pairs or drift.
    """
    treated, control = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    if treated.ndim != 1 or treated.shape != control.shape or np.shape(matrix) != treated.shape:
        raise BadInput("Matched pairs need as many treated as control values, and a matrix each.")
    if draws < 1:
        raise BadInput(f"A permutation test needs at least one draw, not {draws}.")
    block = np.arange(len(treated)) if blocks is None else np.asarray(blocks)
    generator = np.random.default_rng(seed)
    total, seen = np.zeros(draws), 0.0
    used = 0
    for number in np.unique(matrix):
        mine = matrix == number
        whole = float(treated[mine].sum() + control[mine].sum())
        if whole == 0:
            continue
        _, place = np.unique(block[mine], return_inverse=True)
        gap = np.bincount(place, treated[mine] - control[mine]).astype(np.float64)
        n = int(mine.sum())
        used += n
        seen += n * _theta(np.array([gap.sum()]), whole)[0]
        total += n * _theta(_signed(gap, draws, generator), whole)
    if not used:
        return None
    reached = np.abs(total) >= abs(seen) * (1 - 1e-12)
    return float((1 + reached.sum()) / (1 + draws))


def _theta(gap: FloatArray, whole: float) -> FloatArray:
    """Half the log of (whole + gap) / (whole - gap), the ratio of the two sums of squares."""
    share = np.clip(gap / whole, -1 + 1e-15, 1 - 1e-15)
    return np.arctanh(share)


def _signed(gap: FloatArray, draws: int, generator: np.random.Generator) -> FloatArray:
    """Sums of the gaps under random signs, [draws]."""
    out = np.empty(draws)
    step = max(1, _BLOCK // len(gap))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        bits = np.unpackbits(
            generator.integers(0, 256, size=(rows, (len(gap) + 7) // 8), dtype=np.uint8),
            axis=1,
            count=len(gap),
        )
        out[start : start + rows] = gap.sum() - 2 * (bits @ gap)
    return out
