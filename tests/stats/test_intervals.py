"""Known values, coverage by simulation, and no interval where there is nothing to make one from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import Interval, mean_interval, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 2)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(successes, n, level):
    found = wilson(successes, n, level)
    known = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilson_of_a_published_example():
    """Newcombe 1998, table I: 81 of 263 and 15 of 148."""
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(successes, n)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
@settings(max_examples=50, deadline=None)
def test_wilson_holds_the_rate_and_mirrors(n, data):
    successes = data.draw(st.integers(0, n))
    found, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert found is not None
    assert mirrored is not None
    assert 0 <= found.low <= successes / n <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_wilson_refuses_nonsense_and_has_nothing_to_say_of_nothing():
    assert wilson(0, 0) is None
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(BadInput):
            wilson(successes, n)
    with pytest.raises(BadInput, match="between 0 and 1"):
        wilson(1, 2, level=95)


def texts(
    n: int, sd: float, seed: int, link: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Sums, counts, keys and the true token-weighted mean of lognormal texts."""
    generator = np.random.default_rng(seed)
    length = generator.normal(size=n)
    counts = np.exp(4 + 0.6 * length)
    noise = link * length + np.sqrt(1 - link**2) * generator.normal(size=n)
    truth = np.exp(0.6 * sd * link + sd**2 / 2)
    return counts * np.exp(sd * noise), counts, generator.integers(0, 2**64, n, dtype=np.uint64), float(truth)


@pytest.mark.parametrize(("n", "sd", "least"), [(20, 0.5, 0.90), (60, 1.0, 0.87), (200, 1.0, 0.89)])
def test_coverage_on_skewed_texts(n, sd, least):
    hits, simulations = 0, 300
    for seed in range(simulations):
        sums, counts, keys, truth = texts(n, sd, seed)
        found = mean_interval(sums, counts, keys, replicates=200, nonnegative=True)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert hits / simulations >= least


def test_order_moves_nothing():
    sums, counts, keys, _ = texts(40, 1.0, 0)
    order = np.random.default_rng(1).permutation(40)
    assert mean_interval(sums, counts, keys) == mean_interval(sums[order], counts[order], keys[order])


def test_a_wider_level_is_wider_and_texts_of_one_key_are_one_cluster():
    sums, counts, keys, _ = texts(40, 0.5, 0)
    narrow, wide = (mean_interval(sums, counts, keys, level=level) for level in (0.8, 0.99))
    clustered = mean_interval(sums, counts, keys // np.uint64(2**61))
    assert narrow is not None
    assert wide is not None
    assert clustered is not None
    assert wide.low < narrow.low < sums.sum() / counts.sum() < narrow.high < wide.high
    assert mean_interval(sums, counts, np.zeros(40, np.uint64)) is None
    doubled = mean_interval(np.r_[sums, sums], np.r_[counts, counts], np.r_[keys, keys])
    single = mean_interval(sums, counts, keys)
    assert doubled is not None
    assert single is not None
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high), rel=1e-9)


def test_fewer_than_two_texts_with_tokens_have_no_interval():
    keys = np.arange(3, dtype=np.uint64)
    assert mean_interval(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]), keys) is None
    assert mean_interval(np.zeros(0), np.zeros(0), np.zeros(0, np.uint64)) is None


def test_a_nonnegative_quantity_has_no_negative_end():
    sums = np.array([0.0, 0.0, 0.0, 9.0])
    counts, keys = np.ones(4), np.arange(4, dtype=np.uint64)
    signed, cut = mean_interval(sums, counts, keys), mean_interval(sums, counts, keys, nonnegative=True)
    assert signed is not None
    assert cut is not None
    assert signed.low < 0
    assert cut.low == 0
    assert cut.high == signed.high


def test_texts_that_agree_give_a_point():
    keys = np.arange(5, dtype=np.uint64)
    assert mean_interval(np.full(5, 6.0), np.full(5, 3.0), keys) == Interval(2.0, 2.0, 0.95)
