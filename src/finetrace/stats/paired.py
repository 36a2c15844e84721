"""Tests and intervals for two models that saw the same texts or prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray, checked_ratio, cluster_columns, divide, weighted_sums
from finetrace.stats.intervals import Interval, check_level, expanded_tail

# 2^16 sign patterns of 16 pairs are enumerated in milliseconds; above that they are drawn.
_EXACT_PAIRS = 16


@dataclass(frozen=True)
class Difference:
    """Second minus first, of two token-weighted means over the same texts, in their unit.

    `n` is the first's tokens, `clusters` the texts with tokens in either, `dropped` the bootstrap replicates
    in which one of them drew no token. `interval` is None with fewer than two clusters.
    """

    estimate: float
    interval: Interval | None
    n: float
    clusters: int
    dropped: int


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: `p` of "the true value lies outside (low, high)", and whether it was rejected.

    `interval` is the (1 - 2 alpha) one, which lies inside (low, high) exactly when `equivalent`.
    """

    p: float
    equivalent: bool
    interval: Interval


def mcnemar_exact(b: int, c: int) -> float:
    """Exact two-sided McNemar p-value from the discordant counts: b only-first, c only-second. 1 if none."""
    if b < 0 or c < 0:
        raise BadInput(f"Discordant counts cannot be negative: {b}, {c}.")
    if b + c == 0:
        return 1.0
    return float(min(1.0, 2.0 * stats.binom.cdf(min(b, c), b + c, 0.5)))


def paired_difference(
    first: tuple[FloatArray, FloatArray],
    second: tuple[FloatArray, FloatArray],
    keys: NDArray[np.uint64],
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Difference:
    """second - first of two ratio means, each given as (sums, counts) float64 [n] over the same rows.

    Percentile bootstrap with the same weights for both, widened for few clusters (Hesterberg 2015). Rows that
    share a key are one cluster. The estimate is NaN where either side has no tokens.
    """
    check_level(level)
    columns = np.stack([*checked_ratio(*first), *checked_ratio(*second)], axis=1)
    columns, keys = cluster_columns(columns, keys)
    kept = (columns[:, 1] > 0) | (columns[:, 3] > 0)
    columns, keys = columns[kept], keys[kept]
    total = columns.sum(axis=0)
    estimate = float((divide(total[2:3], total[3:4]) - divide(total[0:1], total[1:2]))[0])
    clusters = len(keys)
    if clusters < 2 or np.isnan(estimate):
        return Difference(estimate, None, float(total[1]), clusters, 0)
    drawn = weighted_sums(columns, keys, replicates=replicates, seed=seed)
    differences = divide(drawn[:, 2], drawn[:, 3]) - divide(drawn[:, 0], drawn[:, 1])
    usable = differences[~np.isnan(differences)]
    dropped = replicates - len(usable)
    if len(usable) < 2:
        return Difference(estimate, None, float(total[1]), clusters, dropped)
    tail = expanded_tail(clusters, level)
    low, high = np.quantile(usable, [tail, 1 - tail])
    interval = Interval(float(low), float(high), level)
    return Difference(estimate, interval, float(total[1]), clusters, dropped)


@dataclass(frozen=True)
class ReplicateDifference:
    """Interval of second - first at `level`, in their unit; p of "no difference", two-sided; replicates without data."""

    low: float
    high: float
    p: float
    dropped: int


def replicate_difference(
    value: float, first: FloatArray, second: FloatArray, *, clusters: int, level: float = 0.95
) -> ReplicateDifference | None:
    """How sure `value` = second - first is, from the replicates of both, float64 [replicates], drawn with the same keys
    and seed over `clusters` texts.

    value +- t(clusters - 1) x the sd of the paired replicate differences x sqrt(n / (n - 1)), as for the ratio of a
    change verdict. None with fewer than two clusters, or where over a tenth of the replicates have no data.
    """
    check_level(level)
    if len(first) != len(second):
        raise BadInput(
            "Two figures are paired by as many replicates each, drawn with the same keys and seed."
        )
    drawn = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    usable = drawn[np.isfinite(drawn)]
    dropped = len(drawn) - len(usable)
    if clusters < 2 or len(usable) < 2 or dropped > 0.1 * len(drawn):
        return None
    error = float(usable.std(ddof=1)) * math.sqrt(clusters / (clusters - 1))
    half = float(stats.t.ppf(0.5 + level / 2, clusters - 1)) * error
    if error == 0.0:
        p = 1.0 if value == 0 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(value) / error, clusters - 1))
    return ReplicateDifference(value - half, value + half, p, dropped)


def tost(
    estimate: float, se: float, df: float, low: float, high: float, *, alpha: float = 0.05
) -> Equivalence:
    """Equivalence of `estimate` (standard error `se`, `df` degrees of freedom) with the margin (low, high).

    Source: Schuirmann 1987. All in the estimate's unit.
    """
    level = 1 - 2 * alpha
    if not low < high:
        raise BadInput(f"An equivalence margin needs low < high, not ({low}, {high}).")
    if not (se > 0 and df > 0 and np.isfinite([estimate, se]).all()):
        raise BadInput(f"Equivalence needs a finite estimate, se > 0 and df > 0, not {estimate}, {se}, {df}.")
    check_level(level)
    p = max(float(stats.t.sf((estimate - low) / se, df)), float(stats.t.sf((high - estimate) / se, df)))
    half = float(stats.t.ppf(1 - alpha, df)) * se
    return Equivalence(p, p < alpha, Interval(estimate - half, estimate + half, level))


def sign_flip(differences: FloatArray, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided sign-flip permutation p-value of "the paired differences, float64 [n], centre on 0".

    Exact up to 16 non-zero differences, else by `draws` random flips with the observed one counted in, so
    never 0. It assumes that a difference is as likely positive as negative under the null. Zeros say nothing
    and are left out; 1 if none is left.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise BadInput("A sign-flip test needs one vector of finite differences.")
    values = np.sort(values[values != 0])
    n = len(values)
    if n == 0:
        return 1.0
    # Sums that are equal in exact arithmetic may differ in the last bits.
    reached = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if n <= _EXACT_PAIRS:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ values) >= reached))
    generator = np.random.default_rng(seed)
    block = max(1, 2**20 // n)
    hits = 0
    for start in range(0, draws, block):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(block, draws - start), n), dtype=np.int8)
        hits += int(np.sum(np.abs(signs @ values) >= reached))
    return (1 + hits) / (1 + draws)
