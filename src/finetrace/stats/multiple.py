"""Corrections for asking many questions at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray


def holm(p: Sequence[float] | FloatArray) -> FloatArray:
    """Holm-adjusted p-values, float64 [n], bounding the chance of any false alarm. Source: Holm 1979.

    NaN (not tested) stays NaN and is not counted among the tests.
    """
    values, tested = _checked(p)
    out = np.full(values.shape, np.nan)
    ordered, order = _sorted(values[tested])
    steps = len(ordered) - np.arange(len(ordered))
    adjusted = np.minimum(1.0, np.maximum.accumulate(ordered * steps))
    out[np.flatnonzero(tested)[order]] = adjusted
    return out


def benjamini_hochberg(p: Sequence[float] | FloatArray) -> FloatArray:
    """Benjamini-Hochberg q-values, float64 [n], bounding the expected share of false findings (1995).

    NaN (not tested) stays NaN and is not counted among the tests.
    """
    values, tested = _checked(p)
    out = np.full(values.shape, np.nan)
    ordered, order = _sorted(values[tested])
    scaled = ordered * len(ordered) / np.arange(1, len(ordered) + 1)
    adjusted = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    # n * p / n may round below p, and no q-value lies below its p-value.
    out[np.flatnonzero(tested)[order]] = np.maximum(adjusted, ordered)
    return out


def _checked(p: Sequence[float] | FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise BadInput(f"p-values must be one vector, not an array of shape {list(values.shape)}.")
    tested = ~np.isnan(values)
    wrong = tested & ~((values >= 0) & (values <= 1))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise BadInput(f"p-value {values[place]} at place {place} does not lie between 0 and 1.")
    return values, tested


def _sorted(values: FloatArray) -> tuple[FloatArray, NDArray[np.intp]]:
    order = np.argsort(values, kind="stable")
    return values[order], order
