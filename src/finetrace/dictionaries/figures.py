"""Intervals for thousands of latents at once: arrays in, arrays out, NaN where there is no data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from finetrace.stats.bootstrap import FloatArray
from finetrace.stats.signs import sign_symmetry

__all__ = [
    "design_effect",
    "divided",
    "effective_size",
    "fieller",
    "jackknifed",
    "tango",
    "two_sided",
    "wilson",
]

Ends = tuple[FloatArray, FloatArray]


def divided(numerator: NDArray[Any], denominator: NDArray[Any]) -> FloatArray:
    """NaN where the denominator is not above 0."""
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def design_effect(spread: FloatArray, alone: FloatArray, texts: int) -> FloatArray:
    """How many times larger the variance of a rate over tokens is than that of as many tokens drawn one by one; at least 1.

    spread: the sum over texts of (a text's count - rate x its tokens)^2; alone: the same sum over tokens.
    """
    factor = texts / max(1, texts - 1)
    return np.maximum(1.0, np.nan_to_num(divided(spread * factor, alone), nan=1.0))


def effective_size(n: int, design: FloatArray, texts: int, level: float = 0.95) -> FloatArray:
    """How many independent tokens n tokens of so many texts are worth: n / design x (z / t(texts - 1))^2, as
    `stats.rates.effective` has it (Korn and Graubard 1998). NaN with fewer than two texts."""
    if texts < 2:
        return np.full(np.shape(design), np.nan)
    z, t = stats.norm.ppf(0.5 + level / 2), stats.t.ppf(0.5 + level / 2, texts - 1)
    return n / np.asarray(design, np.float64) * float(z / t) ** 2


def wilson(rate: FloatArray, size: FloatArray, level: float = 0.95) -> Ends:
    """`stats.wilson` of rates whose numbers of trials need not be whole; NaN where size is."""
    z = float(stats.norm.ppf(0.5 + level / 2))
    shrink = 1 + z * z / size
    centre = (rate + z * z / (2 * size)) / shrink
    half = z / shrink * np.sqrt(rate * (1 - rate) / size + z * z / (4 * size * size))
    low, high = np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)
    unknown = np.isnan(size)
    return np.where((rate == 0) & ~unknown, 0.0, low), np.where((rate == 1) & ~unknown, 1.0, high)


def tango(b: FloatArray, c: FloatArray, n: FloatArray, level: float = 0.95) -> Ends:
    """`stats.rates.tango` of (b - c) / n for many pairs of discordant counts: by bisection, to 1e-12; NaN where n is."""
    b, c, n = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (b, c, n)))
    z = float(stats.norm.ppf(0.5 + level / 2))
    centre = (b - c) / n

    def beyond(delta: FloatArray) -> NDArray[np.bool_]:
        linear = -(b + c) + (2 * n - b + c) * delta
        root = np.sqrt(np.maximum(0.0, linear * linear + 8 * n * c * delta * (1 - delta)))
        q = np.maximum(0.0, (root - linear) / (4 * n))
        variance = np.maximum(0.0, n * (2 * q + delta * (1 - delta)))
        return np.abs(b - c - n * delta) > z * np.sqrt(variance)

    def end(limit: float) -> FloatArray:
        near, far = centre.copy(), np.full_like(centre, limit)
        for _ in range(42):
            middle = (near + far) / 2
            out = beyond(middle)
            near, far = np.where(out, near, middle), np.where(out, middle, far)
        return np.where(np.isnan(n), np.nan, (near + far) / 2)

    return end(-1.0), end(1.0)


def fieller(numerator: FloatArray, denominator: FloatArray, level: float = 0.95) -> Ends:
    """Interval of sum(numerator) / sum(denominator), from the sums of m groups of texts, [group, ...]; t(m - 1).

    Exact for a ratio of two normal means (Fieller 1954). m counts the groups in which anything is. NaN with fewer than two,
    and where the denominator cannot be told from 0: the interval would then be without end.

    Measured coverage at level 0.95 in 32 groups (2,000 simulations), where it is finite: 0.946 to 0.968 over 40 to 1,000
    texts of which 2 to 50% have the latent, with a lognormal sum per text of sd of log 0.5 and 1.5, and ratios of 0 and 1.
    """
    m = ((numerator != 0) | (denominator != 0)).sum(0)
    t2 = np.square(_t(m, level))
    top, bottom = numerator.sum(0), denominator.sum(0)
    factor = divided(m.astype(np.float64), m - 1)

    def spread(x: FloatArray, y: FloatArray) -> FloatArray:
        """Covariance of the sums of x and y; groups without data are no groups."""
        return factor * ((x * y).sum(0) - divided(x.sum(0) * y.sum(0), m))

    a = bottom * bottom - t2 * spread(denominator, denominator)
    b = top * bottom - t2 * spread(numerator, denominator)
    c = top * top - t2 * spread(numerator, numerator)
    known = a > 1e-12 * bottom * bottom
    root = np.sqrt(np.where(known, np.maximum(0.0, b * b - a * c), np.nan))
    safe = np.where(known, a, np.nan)
    return (b - root) / safe, (b + root) / safe


def jackknifed(numerator: FloatArray, denominator: FloatArray, level: float = 0.95) -> Ends:
    """Interval of the same ratio where the denominator is surely above 0: value +- t(m - 1) x the linearised error.

    Measured coverage in the simulations of `fieller`: 0.932 to 0.957 with an sd of log of 0.5, and 0.870 (10 texts have the
    latent) to 0.942 (300) with 1.5: somewhat too short where few texts have most of it.
    """
    m = (denominator != 0).sum(0)
    bottom = denominator.sum(0)
    value = divided(numerator.sum(0), bottom)
    rest = np.square(numerator - value * denominator).sum(0)
    half = _t(m, level) * divided(np.sqrt(divided(m.astype(np.float64), m - 1) * rest), bottom)
    return value - half, value + half


def two_sided(totals: NDArray[Any], squares: NDArray[Any]) -> FloatArray:
    """p of "terms are as likely x as -x" either way, from their sums and sums of squares; 1 where all are 0. Not an
    approximation, and at most about three times what the best test would say: `stats.signs.sign_symmetry`."""
    return np.nan_to_num(np.minimum(1.0, 2 * sign_symmetry(np.abs(totals), squares)), nan=1.0)


def _t(m: NDArray[np.int64], level: float) -> FloatArray:
    return np.where(m > 1, stats.t.ppf(0.5 + level / 2, np.maximum(m - 1, 1)), np.nan)
