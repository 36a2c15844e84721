"""Poisson bootstrap over texts, with weights that depend on nothing but the text and the seed.

Every text draws a Poisson(1) weight per replicate from a hash of (key, replicate, seed). The same text so
gets the same weights in every contrast (comparisons are paired), shards can be summed apart and merged, and
neither order nor batching moves a replicate. Source: Chamandy et al. 2012, "Estimating uncertainty for
massive data streams"; the hash is splitmix64 (Steele et al. 2014).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from finetrace.core.errors import BadInput

FloatArray = NDArray[np.float64]

# Weights held at once: two buffers of 2^18 stay inside a CPU's cache and far below any memory limit.
_BLOCK = 1 << 18
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _poisson_thresholds() -> NDArray[np.uint64]:
    """P(Poisson(1) <= k) x 2^64 for k = 0, 1, ... until the tail is below 2^-64."""
    terms = [math.exp(-1.0) / math.factorial(k) for k in range(20)]
    return np.array([min(int(math.fsum(terms[: k + 1]) * 2.0**64), 2**64 - 1) for k in range(17)], np.uint64)


_THRESHOLDS = _poisson_thresholds()


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, in place."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def _row_states(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    mixed_seed = _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
    return _mix(keys + mixed_seed)


def _replicate_offsets(replicates: int) -> NDArray[np.uint64]:
    return np.arange(1, replicates + 1, dtype=np.uint64) * _GOLDEN


def _as_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    keys = np.asarray(keys)
    if keys.ndim != 1 or keys.dtype != np.uint64:
        raise BadInput(
            f"Row keys must be a one-dimensional uint64 array, not {keys.dtype}{list(keys.shape)}."
        )
    return keys


def poisson_weights(keys: NDArray[np.uint64], replicates: int, seed: int) -> NDArray[np.uint8]:
    """Poisson(1) bootstrap weights, uint8 [replicates, n]: a function of each row's own key and the seed only.

    Equal keys get equal weights, so rows that share a key are resampled as one cluster. Replicate r is the
    same whatever `replicates` is.
    """
    if replicates < 1:
        raise BadInput(f"A bootstrap needs at least one replicate, not {replicates}.")
    states = _row_states(_as_keys(keys), seed)
    return _weights(states, _replicate_offsets(replicates))


def _weights(states: NDArray[np.uint64], offsets: NDArray[np.uint64]) -> NDArray[np.uint8]:
    draws = _mix(states[None, :] + offsets[:, None])
    return np.searchsorted(_THRESHOLDS, draws, side="right").astype(np.uint8)


def cluster_columns(columns: FloatArray, keys: NDArray[np.uint64]) -> tuple[FloatArray, NDArray[np.uint64]]:
    """Rows summed by key, sorted by key: (float64 [clusters, m], uint64 [clusters]).

    Rows that share a key are ordered by their values before they are summed, so that the result is the same
    to the last bit in whatever order the rows came.
    """
    keys = _as_keys(keys)
    columns = np.asarray(columns, dtype=np.float64)
    if columns.ndim != 2 or len(columns) != len(keys):
        raise BadInput(f"There are {len(keys)} row keys for values of shape {list(columns.shape)}.")
    if not np.isfinite(columns).all():
        row = int(np.flatnonzero(~np.isfinite(columns).all(axis=1))[0])
        raise BadInput(f"Row {row} has a value that is not finite: mend or exclude it before bootstrapping.")
    if len(keys) == 0:
        return columns, keys
    order = np.lexsort((*columns.T[::-1], keys))
    keys, columns = keys[order], columns[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    if len(starts) < len(keys):
        columns = np.add.reduceat(columns, starts, axis=0)
    return np.ascontiguousarray(columns), keys[starts]


def weighted_sums(columns: FloatArray, keys: NDArray[np.uint64], *, replicates: int, seed: int) -> FloatArray:
    """Bootstrap sums of every column, float64 [replicates, m], from columns float64 [n, m].

    Memory is O(2^18 + replicates x m) beyond the sorted input.
    """
    columns, keys = cluster_columns(columns, keys)
    if replicates < 1:
        raise BadInput(f"A bootstrap needs at least one replicate, not {replicates}.")
    states, offsets = _row_states(keys, seed), _replicate_offsets(replicates)
    total = np.zeros((replicates, columns.shape[1]))
    step = max(1, _BLOCK // replicates)
    for start in range(0, len(keys), step):
        weights = _weights(states[start : start + step], offsets)
        total += weights.astype(np.float64) @ columns[start : start + step]
    return total


def ratio_replicates(
    sums: FloatArray, counts: FloatArray, keys: NDArray[np.uint64], *, replicates: int = 1000, seed: int = 0
) -> FloatArray:
    """Bootstrap replicates, float64 [replicates], of a token-weighted mean: sum(w x sums) / sum(w x counts).

    `sums[i]` is text i's total and `counts[i]` its tokens (>= 0). A replicate in which no token was drawn is
    NaN: whoever uses the replicates drops and counts those. Bit-identical under permutation of the rows.
    """
    sums, counts = checked_ratio(sums, counts)
    totals = weighted_sums(np.stack([sums, counts], axis=1), keys, replicates=replicates, seed=seed)
    return divide(totals[:, 0], totals[:, 1])


def checked_ratio(sums: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both as float64 [n]; raises where the shapes differ or a count is negative."""
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if sums.ndim != 1 or sums.shape != counts.shape:
        raise BadInput(f"Sums {list(sums.shape)} and counts {list(counts.shape)} must be two equal vectors.")
    if (counts < 0).any():
        raise BadInput(f"Row {int(np.argmax(counts < 0))} has a negative count.")
    return sums, counts


def divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """numerator / denominator, NaN where the denominator is 0: no data is never 0."""
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)
