"""The sign-symmetry test: never too small, by enumeration of all signs, and by simulation with clusters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetrace.stats import benjamini_hochberg
from finetrace.stats.signs import sign_symmetry


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_never_smaller_than_the_exact_sign_flip(weights: list[int]):
    """All 2^n signs of all kinds of weights: the bound holds at every value that the sum can take."""
    terms = np.array(weights, float)
    sums = np.array([np.dot(signs, terms) for signs in product((-1, 1), repeat=len(terms))])
    for total in np.unique(sums):
        exact = (sums >= total).mean()
        assert sign_symmetry(np.array([total]), np.array([(terms**2).sum()]))[0] >= exact - 1e-12


def test_close_to_the_normal_tail_and_no_data_is_no_p():
    p = sign_symmetry(np.array([30.0, -30.0, 0.0, 0.0]), np.array([100.0, 100.0, 4.0, 0.0]))
    assert p[0] == pytest.approx(3.178 * stats.norm.sf(3), rel=1e-3)
    assert p[1:3].tolist() == [1.0, 1.0]
    assert np.isnan(p[3])


@pytest.mark.parametrize("texts", [8, 60])
def test_false_positives_with_clustered_data(texts: int):
    """Counts that are alike within a text, heavy-tailed between texts, and up or down by luck: at most 5% of families of
    200 tokens have any token called enriched. A test over positions would call nearly all of them so."""
    random = np.random.default_rng(texts)
    families, positions, wrong, naive = 200, 25, 0, 0
    for _ in range(families):
        size = random.geometric(0.1, (texts, 200)).clip(max=positions)
        net = size * random.choice([-1, 1], (texts, 200))
        q = benjamini_hochberg(sign_symmetry(net.sum(0), (net**2).sum(0)))
        wrong += bool((q <= 0.05).any())
        as_if_independent = stats.norm.sf(net.sum(0) / np.sqrt(size.sum(0)))
        naive += bool((benjamini_hochberg(as_if_independent) <= 0.05).any())
    assert wrong <= 0.05 * families
    assert naive > 0.9 * families


def test_it_finds_what_rises():
    random = np.random.default_rng(0)
    net = random.choice([-1, 1], (60, 200)) * random.integers(1, 10, (60, 200))
    net[:, :5] = np.abs(net[:, :5])
    q = benjamini_hochberg(sign_symmetry(net.sum(0), (net**2).sum(0)))
    assert (q[:5] <= 0.05).all()
    assert (q[5:] <= 0.05).sum() == 0
