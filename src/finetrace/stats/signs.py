"""A test that a sum's sign is luck, valid at any sample size: sums whose terms might as well have had the other sign."""

from __future__ import annotations

import numpy as np
from scipy import stats

from finetrace.stats.bootstrap import FloatArray

# The best constant for which P(sum of signs x weights >= z) <= c P(normal >= z) holds for all weights of unit length.
_TAIL = 1 / (4 * stats.norm.sf(2**0.5))


def sign_symmetry(totals: FloatArray, squares: FloatArray) -> FloatArray:
    """One-sided p-values, float64 [n], of sums above 0 of independent terms, each as likely x as -x.

    totals: the sums; squares: the sums of the terms' squares. NaN where all terms are 0. Not an approximation: given the
    terms' sizes, a sum of z = total / sqrt(squares) or more has at most the probability returned, however few and however
    unequal the terms are. Terms are whole clusters (texts), so what happens inside one does not matter.
    Source: Bentkus & Dzindzalieta 2015, "A tight Gaussian bound for weighted sums of Rademacher random variables".
    """
    totals, squares = np.asarray(totals, np.float64), np.asarray(squares, np.float64)
    z = np.divide(totals, np.sqrt(squares), out=np.full(totals.shape, np.nan), where=squares > 0)
    bound = np.minimum(_TAIL * stats.norm.sf(z), 0.5)
    return np.where(np.isnan(z), np.nan, np.where(z > 0, bound, 1.0))
