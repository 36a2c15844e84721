"""Holm and Benjamini-Hochberg against known values, and the properties that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)
BOTH = pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])


def test_holm_of_a_worked_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_is_scipys(p):
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), atol=1e-15)


@BOTH
@given(P_VALUES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_bounds_order_and_permutation(adjust, p, shuffler):
    found = adjust(p)
    assert ((found >= p) & (found <= 1)).all()
    order = list(range(len(p)))
    shuffler.shuffle(order)
    np.testing.assert_array_equal(adjust(p[order]), found[order])
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
    lowered = adjust(p / 2)
    assert (lowered <= found + 1e-15).all()


@given(P_VALUES)
@settings(max_examples=60, deadline=None)
def test_holm_lies_between_benjamini_hochberg_and_bonferroni(p):
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()
    assert (holm(p) <= np.minimum(1, p * len(p))).all()


@BOTH
def test_what_was_not_tested_is_kept_and_not_counted(adjust):
    with_gap, without = adjust([0.01, math.nan, 0.04]), adjust([0.01, 0.04])
    assert math.isnan(with_gap[1])
    np.testing.assert_array_equal(with_gap[[0, 2]], without)
    assert np.isnan(adjust([math.nan])).all()
    assert len(adjust([])) == 0


@BOTH
@pytest.mark.parametrize("p", [[0.5, 1.2], [-0.1], [math.inf], [[0.1]]])
def test_what_is_not_a_p_value_is_refused(adjust, p):
    with pytest.raises(BadInput, match="p-value"):
        adjust(p)
