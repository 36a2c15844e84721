"""Means over samples, many modules at once: intervals by bootstrap over samples, p by sign flips, q by Benjamini-Hochberg."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from finetrace.core.estimate import Estimate
from finetrace.models.supervised import Sample
from finetrace.stats.bootstrap import cluster_columns, divide, weighted_sums
from finetrace.stats.estimate import ratio_estimate
from finetrace.stats.intervals import expanded_tail
from finetrace.stats.multiple import benjamini_hochberg

NATS = "nats/token"
_REPLICATES, _FLIPS = 1000, 4999


@dataclass(frozen=True, eq=False)
class Tested:
    """Means over samples [item] with their 95% intervals, p-values and q-values over the items; NaN for what cannot be had."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray


def sample_keys(samples: Sequence[Sample]) -> np.ndarray:
    """uint64 [sample], from the tokens: the same sample is one cluster wherever and however often it comes."""
    hashed = [hashlib.blake2b(np.asarray(s.ids, dtype=np.int64).tobytes(), digest_size=8) for s in samples]
    return np.array([int.from_bytes(one.digest(), "big") for one in hashed], dtype=np.uint64)


def mean_estimate(values: np.ndarray, keys: np.ndarray, seed: int) -> Estimate:
    """Mean over samples of values [sample] in nats a token; n counts samples."""
    return ratio_estimate(
        values, np.ones(len(values), dtype=np.int64), keys, unit=NATS, seed=seed, nonnegative=False
    )


def size_estimate(values: np.ndarray, keys: np.ndarray, seed: int) -> Estimate:
    """Root mean square over samples of values [sample]: how large they are, whatever their signs."""
    ones = np.ones(len(values), dtype=np.int64)
    found = ratio_estimate(np.square(values), ones, keys, unit=NATS, seed=seed, nonnegative=True)
    ends = {name: getattr(found, name) for name in ("value", "low", "high")}
    roots = {name: None if end is None else float(np.sqrt(end)) for name, end in ends.items()}
    drawn = None if found.replicates is None else np.sqrt(found.replicates)
    return replace(found, **roots, replicates=drawn)


def difference_estimate(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int
) -> Estimate:
    """Mean of one set of samples minus that of another, apart from it: (values [sample], keys) each."""
    found = contrasted((one[0][:, None], one[1]), (other[0][:, None], other[1]), seed)
    n, clusters = len(one[0]) + len(other[0]), len(np.unique(one[1])) + len(np.unique(other[1]))
    low, high = (None if np.isnan(end[0]) else float(end[0]) for end in (found.low, found.high))
    return Estimate(float(found.value[0]), NATS, n, clusters, low, high)


def tested(values: np.ndarray, keys: np.ndarray, seed: int) -> Tested:
    """Of each column of values [sample, item]: is its mean other than 0?"""
    mean, drawn, clusters = _replicated(values, keys, seed)
    low, high = _percentiles(drawn, clusters)
    p = _flip_p(cluster_columns(values, keys)[0], seed) if clusters > 1 else np.full(len(mean), np.nan)
    return Tested(mean, low, high, p, benjamini_hochberg(p))


def contrasted(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], seed: int) -> Tested:
    """Of each column: the mean over the samples of `one` minus that over those of `other`; p by Welch's t test."""
    (first, ours, n), (second, theirs, m) = _replicated(*one, seed), _replicated(*other, seed)
    low, high = _percentiles(ours - theirs, min(n, m))
    p = np.full(len(first), np.nan)
    if min(n, m) > 1:
        a, b = (_cluster_means(*side) for side in (one, other))
        spread = (a.std(0) > 0) | (b.std(0) > 0)
        found = stats.ttest_ind(a[:, spread], b[:, spread], equal_var=False)
        p[spread] = np.asarray(found.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return Tested(first - second, low, high, p, benjamini_hochberg(p))


def _replicated(values: np.ndarray, keys: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Means [item], bootstrap replicates of them [replicate, item], and the number of clusters."""
    columns = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    drawn = weighted_sums(columns, keys, replicates=_REPLICATES, seed=seed)
    return values.mean(0), divide(drawn[:, :-1], drawn[:, -1:] + 0 * drawn[:, :-1]), len(np.unique(keys))


def _percentiles(drawn: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    if clusters < 2 or not drawn.shape[1]:
        nothing = np.full(drawn.shape[1], np.nan)
        return nothing, nothing.copy()
    tail = expanded_tail(clusters)
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def _cluster_means(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    sums, _ = cluster_columns(np.concatenate([values, np.ones((len(values), 1))], axis=1), keys)
    return sums[:, :-1] / sums[:, -1:]


def _flip_p(values: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided sign-flip p-values [item] of the columns of values [cluster, item]; the same flips for all of them."""
    generator = np.random.default_rng(seed)
    reached = np.abs(values.sum(0)) - 1e-12 * np.abs(values).sum(0)
    hits = np.zeros(values.shape[1])
    for start in range(0, _FLIPS, 500):
        signs = 1.0 - 2.0 * generator.integers(0, 2, (min(500, _FLIPS - start), len(values)))
        hits += (np.abs(signs @ values) >= reached).sum(0)
    return (1 + hits) / (1 + _FLIPS)
