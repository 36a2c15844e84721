"""Many standard deviations from few observations each, made steadier by what they have in common.

With four nulls, a token's spread over them is often small by luck, and its z enormous. Empirical Bayes draws each
variance towards the typical one, as far as their own scatter says they are alike (Smyth 2004, "Linear models and
empirical Bayes methods for assessing differential expression", sec. 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from finetrace.stats.bootstrap import FloatArray

# Beyond this a z says nothing more, and a double's tail probability soon says nothing at all.
LARGEST = 30.0


@dataclass(frozen=True, eq=False)
class Moderated:
    """variance: [item], drawn towards the typical one. dof: degrees of freedom that it is worth (inf: all the same)."""

    variance: FloatArray
    dof: float


def moderated(variance: FloatArray, dof: float) -> Moderated:
    """Sample variances [item] of `dof` degrees of freedom each, moderated. Zeros stay out of the fit and are drawn up.

    The law fitted is s^2 ~ s0^2 F(dof, d0); d0 and s0 by the mean and variance of log s^2.
    """
    variance = np.asarray(variance, dtype=np.float64)
    positive = variance[variance > 0]
    if len(positive) < 2:
        return Moderated(variance, dof)
    logs = np.log(positive) - special.digamma(dof / 2) + np.log(dof / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, dof / 2))
    if excess <= 0:
        return Moderated(np.full_like(variance, np.exp(logs.mean())), np.inf)
    prior = 2 * _trigamma_inverse(excess)
    typical = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    return Moderated((prior * typical + dof * variance) / (prior + dof), dof + prior)


def z_of_t(t: FloatArray, dof: float) -> FloatArray:
    """The standard normal value with the tail probability of Student's t, within +-30."""
    t = np.asarray(t, dtype=np.float64)
    if np.isinf(dof):
        return np.clip(t, -LARGEST, LARGEST)
    tail = np.maximum(stats.t.sf(np.abs(t), dof), stats.norm.sf(LARGEST))
    return np.sign(t) * stats.norm.isf(tail)


def z_against(values: FloatArray, others: FloatArray) -> FloatArray | None:
    """z [item] of values [item] as one more draw beside others [k, item]; None with fewer than two others, NaN for an item
    in which nothing varies.

    t = (value - mean) / (s sqrt(1 + 1/k)) with the moderated s, as a normal value. It takes the others for draws from one
    normal law per item.
    """
    others = np.asarray(others, dtype=np.float64)
    k = len(others)
    if k < 2:
        return None
    spread = moderated(others.var(axis=0, ddof=1), k - 1)
    scale = np.sqrt(spread.variance * (1 + 1 / k))
    gap = np.asarray(values, dtype=np.float64) - others.mean(axis=0)
    return z_of_t(np.divide(gap, scale, out=np.full_like(gap, np.nan), where=scale > 0), spread.dof)


def _trigamma_inverse(value: float) -> float:
    """y with trigamma(y) = value, by Newton's method on 1 / trigamma, which is convex (Smyth 2004, appendix)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        found = special.polygamma(1, y)
        step = found * (1 - found / value) / special.polygamma(2, y)
        y += step
        if -step / y < 1e-10:
            break
    return float(y)
