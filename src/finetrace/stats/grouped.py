"""Mean vectors over texts, from sums over groups of texts: norms without noise's share, reliability, and what noise does.

A text belongs to one of G groups by a hash of its content. All that is kept of a group is the sum of its texts' vectors,
the sum of their squared norms and how many they are. Everything here reads the inner products of the groups' sums, so
that it costs nothing in the vectors' length, and takes leading axes (layers, positions) as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray, poisson_weights

# A spread below this share of the squared mean is rounding: texts that all begin alike have no noise to compare with.
_CONSTANT = 1e-10
_SPLITS = 128


@dataclass(frozen=True, eq=False)
class Grouped:
    """gram: float64 [..., group, group], inner products of the groups' sums of vectors. square: float64 [..., group], sums
    of their texts' squared norms. texts: int64 [group]."""

    gram: FloatArray
    square: FloatArray
    texts: NDArray[np.int64]

    @property
    def groups(self) -> int:
        """Groups that have texts."""
        return int((self.texts > 0).sum())


def grouped(sums: FloatArray, square: FloatArray, texts: NDArray[np.int64]) -> Grouped:
    """From the groups' sums [..., group, d]."""
    sums = np.asarray(sums, dtype=np.float64)
    return Grouped(sums @ np.swapaxes(sums, -1, -2), np.asarray(square, dtype=np.float64), texts)


def everyone(found: Grouped) -> FloatArray:
    """The weights [1, group] that take every group once."""
    return np.ones((1, len(found.texts)))


def without_each(found: Grouped) -> FloatArray:
    """Weights [those groups, group] that leave out one group that has texts, each in turn."""
    return (1.0 - np.eye(len(found.texts)))[found.texts > 0]


def squared_norm(found: Grouped, weights: FloatArray) -> FloatArray:
    """|mean|^2 without the share that noise adds to it, [..., weight]: the mean inner product of two different texts.

    May be below 0 where there is nothing but noise. NaN with fewer than two texts. weights: [weight, group]; a weight
    of 2 takes a group's texts twice and still pairs none with itself.
    """
    total = _product(found.gram, weights)
    own = np.square(weights)
    pairs = np.square(weights @ found.texts) - own @ found.texts
    return _divide(total - found.square @ own.T, pairs)


def noise(found: Grouped, weights: FloatArray) -> FloatArray:
    """Trace of the covariance between texts, [..., weight]; weights are 0 or 1. NaN with fewer than two texts, or where
    the texts are all alike."""
    n = weights @ found.texts
    total = _product(found.gram, weights)
    spread = _divide(found.square @ weights.T - _divide(total, n), n - 1)
    return np.where(spread > _CONSTANT * _divide(total, n * n), spread, np.nan)


def signal_to_noise(found: Grouped, weights: FloatArray) -> FloatArray:
    """n |mean|^2 / trace of the covariance, [..., weight]: 1 on average for noise alone, n |mu|^2 / trace more with a mean
    mu. It grows with the number of texts n: it says how well the mean is known, not how large it is."""
    return _divide(_divide(_product(found.gram, weights), weights @ found.texts), noise(found, weights))


def standard_error(found: Grouped) -> FloatArray:
    """Root mean square distance [...] of the mean from what more texts would give, in the vectors' unit."""
    weights = everyone(found)
    return np.sqrt(_divide(noise(found, weights), weights @ found.texts))[..., 0]


def splits(groups: int, seed: int = 0) -> FloatArray:
    """Halves [split, group] of 0 and 1 with as many groups on either side: all of them where they are few."""
    if groups < 2 or groups % 2:
        raise BadInput(f"Groups are halved, so their number is even and at least 2, not {groups}.")
    if groups <= 10:
        patterns = (np.arange(2 ** (groups - 1))[:, None] >> np.arange(groups)) & 1
        return patterns[patterns.sum(1) == groups // 2].astype(np.float64)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(groups), (_SPLITS, 1)), axis=1)
    return (order < groups // 2).astype(np.float64)


def split_cosine(found: Grouped, keep: FloatArray | None = None) -> FloatArray:
    """Cosine between the means of two halves of the texts, averaged over balanced splits, [...]: near 0 for noise.

    keep: 0 or 1 per group, to leave some out. NaN where no split has texts, and a difference, on both sides.
    """
    half = splits(len(found.texts))
    first = half if keep is None else half * keep
    second = (1 - half) if keep is None else (1 - half) * keep
    inner = np.einsum("sg,...gh,sh->...s", first, found.gram, second, optimize=True)
    size = np.sqrt(np.maximum(_product(found.gram, first) * _product(found.gram, second), 0))
    return _mean(_divide(inner, size))


def flip_p(found: Grouped, *, draws: int = 999, seed: int = 0) -> FloatArray:
    """p [...] of "the mean is 0": how often random signs on the groups give as large a signal to noise.

    Exact in level where each group's sum is as likely as its negative; at least 1 / (draws + 1), and 2^(1 - groups).
    NaN without data.
    """
    reached = np.zeros(found.gram.shape[:-2])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, len(found.texts)))
    n = found.texts.sum()
    seen, square = _product(found.gram, everyone(found)), found.square.sum(-1, keepdims=True)
    for start in range(0, draws, 128):
        flipped = _product(found.gram, signs[start : start + 128])
        # n |m|^2 / (square - n |m|^2) grows with |m|^2, the only part that signs move.
        reached += (flipped >= seen * (1 - 1e-9)).sum(-1)
    p = (1 + reached) / (draws + 1)
    return np.where((n > 1) & (square[..., 0] > 0), p, np.nan)


def jackknife_half(left_out: FloatArray, level: float = 0.95) -> FloatArray:
    """Half the width [...] of an interval, from the values [..., m] without each of m groups: t(m - 1) x the delete-a-group
    jackknife's standard error (Kott 2001). NaN with fewer than two groups."""
    left_out = np.asarray(left_out, dtype=np.float64)
    m = left_out.shape[-1]
    if m < 2:
        return np.full(left_out.shape[:-1], np.nan)
    centred = left_out - left_out.mean(-1, keepdims=True)
    return stats.t.ppf(0.5 + level / 2, m - 1) * np.sqrt((m - 1) / m * np.square(centred).sum(-1))


def jackknife_interval(value: float, left_out: FloatArray, level: float = 0.95) -> tuple[float, float] | None:
    """value +- `jackknife_half`; None where it cannot be had."""
    half = float(jackknife_half(left_out, level))
    return (value - half, value + half) if np.isfinite(half) else None


def group_weights(groups: int, *, replicates: int, seed: int) -> FloatArray:
    """Poisson bootstrap weights [replicate, group]: the same for every contrast, as a text's group is."""
    return poisson_weights(np.arange(groups, dtype=np.uint64), replicates, seed).astype(np.float64)


def widened(replicates: FloatArray, groups: int, texts: int) -> FloatArray:
    """Replicates over groups, spread in the log so that whoever takes them for replicates over `texts` gets the interval
    that so few groups deserve: t(groups - 1) and groups / (groups - 1) in place of those of the texts."""
    if not 2 <= groups <= texts:
        return replicates
    factor = stats.t.ppf(0.975, groups - 1) / stats.t.ppf(0.975, texts - 1)
    factor *= np.sqrt(groups / (groups - 1) * (texts - 1) / texts)
    usable = np.isfinite(replicates) & (replicates > 0)
    if not usable.any():
        return replicates
    out = replicates.copy()
    logs = np.log(replicates[usable])
    out[usable] = np.exp(logs.mean() + factor * (logs - logs.mean()))
    return out


def _product(gram: FloatArray, weights: FloatArray) -> FloatArray:
    """w' gram w for each weight: [..., weight]."""
    return ((weights @ gram) * weights).sum(-1)


def _divide(numerator: FloatArray, denominator: NDArray[Any]) -> FloatArray:
    """NaN where the denominator is not positive: no data is never 0."""
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def _mean(values: FloatArray) -> FloatArray:
    """Over the last axis, without NaN; NaN where nothing else is there."""
    known = np.isfinite(values)
    return _divide(np.where(known, values, 0.0).sum(-1), known.sum(-1))
