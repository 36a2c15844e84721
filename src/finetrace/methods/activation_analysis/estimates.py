"""Sums of texts as figures with intervals over texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from finetrace.core.estimate import Estimate
from finetrace.methods.activation_analysis.alignment import cka_distance
from finetrace.methods.activation_analysis.figures import QUANTITIES, UNITS
from finetrace.stats import ratio_estimate, weighted_sums
from finetrace.stats.bootstrap import cluster_columns
from finetrace.stats.intervals import expanded_tail

_REPLICATES = 1000


class Bounds(NamedTuple):
    """A figure and its 95% interval, arrays of one shape; NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plain(value: float | np.floating) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if np.isfinite(value) else None


def means(sums: np.ndarray, counts: np.ndarray, keys: np.ndarray, seed: int) -> dict[str, Estimate]:
    """The `QUANTITIES`: sums [text, quantity], counts [text], keys [text] uint64."""
    return {
        key: ratio_estimate(sums[:, q], counts, keys, unit=UNITS[key], seed=seed, nonnegative=True)
        for q, key in enumerate(QUANTITIES)
    }


def many_means(sums: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> Bounds:
    """sum(sums) / sum(counts) of many columns, sums [text, column]; the interval is that of the linearised error with t. One
    is drawn for each layer: a bootstrap, which `means` has, would take minutes."""
    totals, _ = cluster_columns(np.concatenate([sums, counts[:, None]], 1), keys)
    totals = totals[totals[:, -1] > 0]
    n, s, c = len(totals), totals[:, :-1], totals[:, -1:]
    nothing = np.full(sums.shape[1], np.nan)
    if not n:
        return Bounds(nothing, nothing, nothing)
    value = s.sum(0) / c.sum()
    if n < 2:
        return Bounds(value, nothing, nothing)
    error = np.sqrt(np.square(s - value * c).sum(0) * n / (n - 1)) / c.sum()
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Bounds(value, np.maximum(value - half, 0.0), value + half)


def alignments(
    grams: np.ndarray, counts: np.ndarray, keys: np.ndarray, seed: int
) -> tuple[Bounds, np.ndarray]:
    """CKA distances of each layer, grams [text, layer, 3], with the replicates [replicate, layer] behind the intervals: a
    bootstrap over texts, its percentiles widened for few."""
    known = counts > 0
    grams, keys, layers = grams[known], keys[known], grams.shape[1]
    value, clusters = cka_distance(grams.sum(0)), len(np.unique(keys))
    nothing = np.full(layers, np.nan)
    if clusters < 2:
        return Bounds(value if clusters else nothing, nothing, nothing), np.full(
            (_REPLICATES, layers), np.nan
        )
    drawn = weighted_sums(grams.reshape(len(grams), -1), keys, replicates=_REPLICATES, seed=seed)
    drawn = cka_distance(drawn.reshape(_REPLICATES, layers, 3))
    low, high = nothing.copy(), nothing.copy()
    tail = expanded_tail(clusters)
    for layer in np.flatnonzero(np.isfinite(value)):
        usable = drawn[np.isfinite(drawn[:, layer]), layer]
        if len(usable) > 1:
            found = np.quantile(usable, [tail, 1 - tail])
            low[layer], high[layer] = min(found[0], value[layer]), max(found[1], value[layer])
    return Bounds(value, low, high), drawn


def alignment(
    bounds: Bounds, drawn: np.ndarray, layer: int, counts: np.ndarray, keys: np.ndarray
) -> Estimate:
    """One layer of `alignments`. n: the tokens that were compared."""
    value = plain(bounds.value[layer])
    n, texts = int(counts.sum()), len(np.unique(keys[counts > 0]))
    if value is None:
        return Estimate(None, UNITS["cka_distance"], n, texts)
    low, high = plain(bounds.low[layer]), plain(bounds.high[layer])
    replicates = drawn[:, layer] if low is not None else None
    return Estimate(value, UNITS["cka_distance"], n, texts, low, high, replicates)
