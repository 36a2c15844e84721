"""Pooling over seeds and layers: coverage, closed forms, and what is no data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import log_rms_ratio, pooled, superiority


def drawn(generator, shape, sds, mean=0.0):
    """Effects [seed, matrix] with sds of seed, layer, matrix and residual; uneven weights; layers."""
    seeds, layers, per = shape
    of = np.repeat(np.arange(layers), per)
    seed, layer, matrix, residual = sds
    effects = mean + seed * generator.normal(size=(seeds, 1)) + layer * generator.normal(size=layers)[of]
    effects = effects + matrix * generator.normal(size=layers * per)
    effects = effects + residual * generator.normal(size=(seeds, layers * per))
    weights = np.tile(generator.uniform(0.3, 1.5, per), layers) * np.repeat(
        np.exp(0.3 * generator.normal(size=layers)), per
    )
    return effects, weights, of


@pytest.mark.parametrize("shape", [(5, 6, 2), (5, 10, 3), (5, 30, 1)], ids=str)
@pytest.mark.parametrize(
    "sds", [(0, 0, 0, 3), (2, 0, 0, 3), (0, 2, 2, 3), (2, 2, 2, 3), (5, 0, 2, 1)], ids=str
)
def test_the_interval_covers_at_five_seeds(shape, sds):
    generator, runs = np.random.default_rng(0), 600
    hits = narrow = 0
    for _ in range(runs):
        found = pooled(*drawn(generator, shape, np.array(sds) / 100, mean=0.05), replicates=1)
        assert found is not None
        wide, tight = found.interval(0.95), found.interval(0.90)
        assert wide is not None
        assert tight is not None
        hits += wide.low <= 0.05 <= wide.high
        narrow += tight.low <= 0.05 <= tight.high
    error = 2.6 * np.sqrt(0.95 * 0.05 / runs)
    assert 0.93 - error <= hits / runs <= 0.975 + error
    assert narrow / runs >= 0.88 - error


def test_one_run_is_covered_over_its_layers():
    generator, runs = np.random.default_rng(1), 1200
    hits = 0
    for _ in range(runs):
        found = pooled(*drawn(generator, (1, 8, 3), (0, 0.02, 0.02, 0.02), mean=0.05), replicates=1)
        interval = found.interval() if found else None
        assert interval is not None
        hits += interval.low <= 0.05 <= interval.high
    assert 0.93 <= hits / runs <= 0.975


def test_a_percentile_bootstrap_would_not_cover():
    """Why the interval is not one: the replicates are for pairing comparisons, not for percentiles."""
    generator, hits = np.random.default_rng(2), 0
    for run in range(300):
        found = pooled(*drawn(generator, (5, 6, 2), (0.05, 0, 0.02, 0.01)), replicates=200, seed=run)
        assert found is not None
        low, high = np.nanquantile(found.replicates, [0.025, 0.975])
        hits += low <= 0 <= high
    assert hits / 300 < 0.9


def test_equal_layers_of_one_run_are_a_one_sample_t():
    effects = np.array([[0.1, 0.3, -0.1, 0.2]])
    found = pooled(effects, np.ones(4), np.arange(4))
    assert found is not None
    error = effects.std(ddof=1) / 2
    assert found.p == pytest.approx(2 * stats.t.sf(effects.mean() / error, 3))
    assert (found.df, found.layers, found.seeds) == (3, 4, 1)
    interval = found.interval()
    assert interval is not None
    half = stats.t.ppf(0.975, 3) * error
    assert (interval.low, interval.high) == pytest.approx((effects.mean() - half, effects.mean() + half))


def test_seeds_alone_are_a_one_sample_t():
    effects = np.array([[0.1], [0.3], [-0.1]])
    found = pooled(effects, np.ones(1), np.zeros(1, int))
    assert found is not None
    assert found.p == pytest.approx(2 * stats.t.sf(effects.mean() / (effects.std(ddof=1) / 3**0.5), 2))


def test_without_a_second_cluster_there_is_no_error():
    found = pooled(np.array([[0.1, 0.2]]), np.array([1.0, 3.0]), np.array([4, 4]))
    assert found is not None
    assert found.value == pytest.approx(0.175)
    assert (found.se, found.p, found.interval(), found.smallest_detectable) == (None, None, None, None)


def test_what_has_no_data_is_left_out_and_counted():
    effects = np.array([[0.1, np.nan, 0.3], [0.1, 0.5, 0.3]])
    found = pooled(effects, np.array([1.0, 5.0, 1.0]), np.arange(3))
    assert found is not None
    assert (found.matrices, found.dropped) == (2, 1)
    assert found.value == pytest.approx(0.2)
    assert pooled(effects, np.zeros(3), np.arange(3)) is None
    with pytest.raises(BadInput, match="one weight and one layer a matrix"):
        pooled(effects, np.ones(2), np.arange(2))
    with pytest.raises(BadInput, match="not negative"):
        pooled(effects, np.array([1.0, -1.0, 1.0]), np.arange(3))


def test_replicates_pair_comparisons_of_the_same_layers():
    effects, weights, layers = drawn(np.random.default_rng(0), (1, 8, 2), (0, 0.1, 0, 0.1))
    one, more = (pooled(effects + shift, weights, layers, seed=7) for shift in (0.0, 0.25))
    assert one is not None
    assert more is not None
    assert np.nanstd(more.replicates - one.replicates) < 1e-12
    assert one.se == pytest.approx(np.nanstd(one.replicates), rel=0.5)


def test_the_detectable_effect_is_2_8_errors_with_many_clusters():
    found = pooled(np.random.default_rng(0).normal(size=(1, 400)), np.ones(400), np.arange(400))
    assert found is not None
    assert found.smallest_detectable == pytest.approx(2.8 / np.sqrt(400), rel=0.1)


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(1e-3, 1e3), st.integers(0, 2**31 - 1)
)
def test_the_log_ratio_feels_no_scale_and_turns_with_the_groups(squares, factor, seed):
    square = np.array(squares)
    other = np.random.default_rng(seed).uniform(0.1, 10, len(square))
    n = np.ones_like(square)
    there, back = log_rms_ratio(square, n, other, n), log_rms_ratio(other, n, square, n)
    assert np.allclose(there, -back)
    assert np.allclose(log_rms_ratio(square * factor, n, other * factor, n), there, atol=1e-9)


def test_a_group_that_did_not_move_has_no_ratio():
    found = log_rms_ratio(*(np.array(x) for x in ([0.0, 4.0, 1.0], [2, 4, 0], [1.0, 4.0, 1.0], [1, 1, 1])))
    assert np.isnan(found[[0, 2]]).all()
    assert found[1] == pytest.approx(0.5 * np.log(1 / 4))


def test_superiority_counts_ties_half():
    found = superiority(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 3.0]), np.array([0, 0, 2]), 3)
    assert found[0] == 0.75
    assert np.isnan(found[1])
    assert found[2] == 0.0
