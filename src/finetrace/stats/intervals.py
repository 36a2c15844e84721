"""Intervals for rates and for token-weighted means over texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray, checked_ratio, cluster_columns, divide, weighted_sums


@dataclass(frozen=True)
class Interval:
    """A two-sided interval, in the unit of the estimate it belongs to."""

    low: float
    high: float
    level: float


def check_level(level: float) -> float:
    """The level itself; raises where it is not a probability strictly between 0 and 1."""
    if not 0.0 < level < 1.0:
        raise BadInput(f"A confidence level must lie between 0 and 1, not {level}: 0.95 is usual.")
    return level


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson score interval of a rate in [0, 1]; None for n = 0. Source: Wilson 1927."""
    check_level(level)
    if not 0 <= successes <= n:
        raise BadInput(f"There cannot be {successes} successes in {n} trials.")
    if n == 0:
        return None
    z = float(stats.norm.ppf(0.5 + level / 2))
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high, level)


def mean_interval(
    sums: FloatArray,
    counts: FloatArray,
    keys: NDArray[np.uint64],
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
    nonnegative: bool = False,
) -> Interval | None:
    """Interval of a token-weighted mean sum(sums) / sum(counts) over texts, in the unit of the mean.

    `sums` and `counts`, float64 [n], are each text's total and tokens; rows that share a key are one cluster.
    None with fewer than two clusters that have tokens. `nonnegative` declares a quantity that cannot be below
    0 (a KL, a norm) and cuts the lower end there. It covers the choice of texts, not retraining.

    Bootstrap-t (Efron and Tibshirani 1993, ch. 12.5) with the linearised standard error of a ratio, and its
    percentiles widened for few clusters as by Hesterberg (2015, "What teachers should know about the
    bootstrap", sec. 5.2). The plain widened percentile interval was rejected: on skewed texts it covers only
    0.81-0.86 at n = 60. Measured coverage of this one at level 0.95 (1,000 simulations, 500 replicates,
    lognormal text lengths with sd of log 0.6, lognormal mean per text with sd of log as given):

        clusters                                  20      60      200
        sd 0.5                                    0.947   0.943   0.953
        sd 1.0                                    0.927   0.919   0.949
        sd 1.0, correlated 0.5 with the length    0.916   0.902   0.928
        sd 1.5                                    0.881   0.891   0.928

    So an interval over fewer than 200 very skewed texts is somewhat too short, mostly at its upper end.
    """
    check_level(level)
    totals, keys = _with_tokens(sums, counts, keys)
    n = len(keys)
    if n < 2:
        return None
    estimate = float(totals[:, 0].sum() / totals[:, 1].sum())
    error = float(np.sqrt(np.square(totals[:, 0] - estimate * totals[:, 1]).sum() * n / (n - 1)))
    error /= float(totals[:, 1].sum())
    scores = _studentised(totals, keys, estimate, replicates, seed)
    tail = expanded_tail(n, level)
    if error == 0.0 or len(scores) < 2:
        low = high = estimate
    else:
        upper, lower = np.quantile(scores, [1 - tail, tail])
        low, high = min(estimate, estimate - upper * error), max(estimate, estimate - lower * error)
    return Interval(max(0.0, float(low)) if nonnegative else float(low), float(high), level)


def expanded_tail(n: int, level: float = 0.95) -> float:
    """The bootstrap percentile, in (0, 0.5), that a t interval over n clusters answers to (Hesterberg 2015)."""
    quantile = stats.t.ppf(0.5 + level / 2, n - 1)
    return float(stats.norm.cdf(-quantile * math.sqrt(n / (n - 1))))


def _with_tokens(
    sums: FloatArray, counts: FloatArray, keys: NDArray[np.uint64]
) -> tuple[FloatArray, NDArray[np.uint64]]:
    sums, counts = checked_ratio(sums, counts)
    totals, keys = cluster_columns(np.stack([sums, counts], axis=1), keys)
    kept = totals[:, 1] > 0
    return totals[kept], keys[kept]


def _studentised(
    totals: FloatArray, keys: NDArray[np.uint64], estimate: float, replicates: int, seed: int
) -> FloatArray:
    """(replicate - estimate) / the replicate's own standard error; replicates without a spread are dropped."""
    residual, count = totals[:, 0] - estimate * totals[:, 1], totals[:, 1]
    columns = np.stack(
        [residual, count, residual**2, residual * count, count**2, np.ones_like(count)], axis=1
    )
    r, c, rr, rc, cc, drawn = weighted_sums(columns, keys, replicates=replicates, seed=seed).T
    shift = divide(r, c)
    spread = rr - 2 * shift * rc + shift**2 * cc
    # One distinct cluster drawn has no spread but rounding error, and would divide by nearly 0.
    usable = (drawn > 1) & (spread > 1e-9 * (rr + shift**2 * cc))
    factor = drawn[usable] / (drawn[usable] - 1)
    return shift[usable] * c[usable] / np.sqrt(spread[usable] * factor)
