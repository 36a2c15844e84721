"""Paired tests against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import mcnemar_exact, paired_difference, sign_flip, tost


@pytest.mark.parametrize(("b", "c"), [(1, 9), (9, 1), (0, 5), (4, 4), (12, 30)])
def test_mcnemar_is_a_sign_test(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, abs=1e-12)


def test_mcnemar_of_no_disagreement_and_of_nonsense():
    assert mcnemar_exact(0, 0) == 1.0
    with pytest.raises(BadInput, match="negative"):
        mcnemar_exact(-1, 3)


def made(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    counts = generator.integers(5, 50, n).astype(float)
    return counts * generator.lognormal(size=n), counts, generator.integers(0, 2**64, n, dtype=np.uint64)


def test_a_constant_shift_is_found_exactly_because_weights_are_paired():
    sums, counts, keys = made(50, 0)
    found = paired_difference((sums, counts), (sums + 0.25 * counts, counts), keys)
    assert found.interval is not None
    assert (found.estimate, found.interval.low, found.interval.high) == pytest.approx((0.25, 0.25, 0.25))
    assert (found.n, found.clusters, found.dropped) == (counts.sum(), 50, 0)


def test_paired_difference_covers_and_turns_its_sign():
    hits = 0
    for seed in range(200):
        sums, counts, keys = made(60, seed)
        noise = np.random.default_rng(seed + 10_000).normal(0.3, 1, 60)
        first, second = (sums, counts), (sums + counts * noise, counts)
        found = paired_difference(first, second, keys, replicates=200)
        back = paired_difference(second, first, keys, replicates=200)
        assert found.interval is not None
        assert back.estimate == pytest.approx(-found.estimate)
        hits += found.interval.low <= 0.3 <= found.interval.high
    assert hits / 200 > 0.89


def test_paired_difference_without_data():
    keys = np.arange(3, dtype=np.uint64)
    empty, full = (np.zeros(3), np.zeros(3)), (np.ones(3), np.ones(3))
    found = paired_difference(empty, full, keys)
    assert math.isnan(found.estimate)
    assert found.interval is None
    assert paired_difference(full, full, np.zeros(3, np.uint64)).interval is None


def test_tost_agrees_with_its_interval_and_with_two_t_tests():
    values = np.random.default_rng(0).normal(0.1, 1, 80)
    estimate, se = float(values.mean()), float(stats.sem(values))
    for half in (0.1, 0.3, 0.5, 1.0):
        found = tost(estimate, se, 79, -half, half)
        above = np.asarray(stats.ttest_1samp(values, -half, alternative="greater"))[1]
        below = np.asarray(stats.ttest_1samp(values, half, alternative="less"))[1]
        assert found.p == pytest.approx(float(max(above, below)), rel=1e-9)
        assert found.equivalent == (-half < found.interval.low and found.interval.high < half)
    with pytest.raises(BadInput, match="low < high"):
        tost(0, 1, 5, 1, -1)
    with pytest.raises(BadInput, match="se > 0"):
        tost(0, 0, 5, -1, 1)


def test_sign_flip_exact_is_scipys():
    values = np.random.default_rng(1).normal(0.5, 1, 10)
    known = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=2**10, alternative="two-sided"
    )
    assert sign_flip(values) == pytest.approx(known.pvalue)
    assert sign_flip(np.ones(5)) == 2 / 2**5


def test_sign_flip_by_draws_is_close_to_exact_never_zero_and_repeatable():
    values = np.random.default_rng(2).normal(0.4, 1, 17)
    signs = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert sign_flip(values) == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))
    assert sign_flip(values[::-1].copy()) == sign_flip(values)
    assert sign_flip(np.full(100, 3.0), draws=99) == 1 / 100
    assert sign_flip(np.zeros(4)) == 1.0
    with pytest.raises(BadInput, match="finite"):
        sign_flip(np.array([1.0, math.nan]))
