"""Weights belong to a text and a seed; replicates do not know the order of the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.stats import poisson_weights, ratio_replicates, weighted_sums

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30).map(
    lambda keys: np.array(keys, np.uint64)
)


def made_keys(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


@given(KEYS, st.integers(0, 2**63), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_weight_depends_on_its_own_key_and_the_seed_only(keys, seed, shuffler):
    weights = poisson_weights(keys, 7, seed)
    order = list(range(len(keys)))
    shuffler.shuffle(order)
    assert weights.dtype == np.uint8
    assert weights.shape == (7, len(keys))
    np.testing.assert_array_equal(poisson_weights(keys[order], 7, seed), weights[:, order])
    np.testing.assert_array_equal(poisson_weights(keys[:1], 3, seed), weights[:3, :1])


def test_weights_are_poisson_and_uncorrelated():
    weights = poisson_weights(np.arange(20_000, dtype=np.uint64), 50, 1)
    n = weights.size
    for k in range(6):
        expected = math.exp(-1) / math.factorial(k)
        assert abs((weights == k).mean() - expected) < 5 * math.sqrt(expected / n)
    between_replicates = np.asarray(np.corrcoef(weights))[np.triu_indices(50, 1)]
    assert np.abs(between_replicates).max() < 5 / math.sqrt(20_000)
    neighbours = np.asarray(np.corrcoef(weights[:, :-1].ravel(), weights[:, 1:].ravel()))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(n)


def test_another_seed_gives_other_weights():
    keys = made_keys(200)
    assert (poisson_weights(keys, 5, 0) != poisson_weights(keys, 5, 1)).mean() > 0.3


def test_weights_stay_what_they_were():
    """Stored replicates would silently stop being paired if the hash changed."""
    found = poisson_weights(np.array([0, 1, 2**63], np.uint64), 4, 42)
    assert found.tolist() == [[2, 1, 1], [1, 0, 0], [1, 0, 2], [1, 1, 2]]


@given(KEYS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_replicates_are_bit_identical_under_permutation(keys, shuffler):
    generator = np.random.default_rng(len(keys))
    keys = keys % np.uint64(9)  # many rows share a key
    sums, counts = generator.lognormal(size=len(keys)), generator.integers(0, 5, len(keys)).astype(float)
    order = list(range(len(keys)))
    shuffler.shuffle(order)
    one = ratio_replicates(sums, counts, keys, replicates=20)
    other = ratio_replicates(sums[order], counts[order], keys[order], replicates=20)
    assert one.tobytes() == other.tobytes()


def test_replicates_match_the_plain_formula():
    keys = made_keys(500)
    sums, counts = np.random.default_rng(3).normal(size=(2, 500)) ** 2
    weights = poisson_weights(keys, 30, 9).astype(float)
    found = ratio_replicates(sums, counts, keys, replicates=30, seed=9)
    np.testing.assert_allclose(found, (weights @ sums) / (weights @ counts), rtol=1e-12)


def test_replicates_spread_like_the_standard_error_over_many_blocks():
    generator = np.random.default_rng(4)
    sums = generator.normal(5, 2, size=3000)
    found = ratio_replicates(sums, np.ones(3000), made_keys(3000), replicates=1000)
    assert found.std() == pytest.approx(2 / math.sqrt(3000), rel=0.1)
    assert found.mean() == pytest.approx(5, abs=0.02)


def test_shards_merge():
    keys, columns = made_keys(300), np.random.default_rng(5).random((300, 2))
    whole = weighted_sums(columns, keys, replicates=10, seed=2)
    parts = [weighted_sums(columns[a:b], keys[a:b], replicates=10, seed=2) for a, b in ((0, 90), (90, 300))]
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-12)


def test_no_tokens_is_nan_and_never_zero():
    found = ratio_replicates(np.zeros(3), np.zeros(3), made_keys(3), replicates=10)
    assert np.isnan(found).all()
    one_text = ratio_replicates(np.array([2.0]), np.array([1.0]), made_keys(1), replicates=200)
    assert 0.2 < np.isnan(one_text).mean() < 0.55
    assert set(one_text[~np.isnan(one_text)]) == {2.0}
    empty = ratio_replicates(np.zeros(0), np.zeros(0), np.zeros(0, np.uint64), replicates=4)
    assert np.isnan(empty).all()


@pytest.mark.parametrize(
    ("sums", "counts", "keys", "said"),
    [
        ([1.0, math.nan], [1.0, 1.0], np.arange(2, dtype=np.uint64), "Row 1"),
        ([1.0, 1.0], [1.0, -1.0], np.arange(2, dtype=np.uint64), "negative count"),
        ([1.0], [1.0, 1.0], np.arange(2, dtype=np.uint64), "equal vectors"),
        ([1.0, 1.0], [1.0, 1.0], np.arange(2), "uint64"),
        ([1.0, 1.0], [1.0, 1.0], np.arange(3, dtype=np.uint64), "3 row keys"),
    ],
)
def test_wrong_input_is_named(sums, counts, keys, said):
    with pytest.raises(BadInput, match=said):
        ratio_replicates(np.array(sums), np.array(counts), keys)


def test_no_replicates_is_refused():
    with pytest.raises(BadInput, match="at least one replicate"):
        poisson_weights(made_keys(2), 0, 0)
