"""Means of vectors over texts, against the vectors themselves and against simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.stats.grouped import (
    Grouped,
    everyone,
    flip_p,
    group_weights,
    grouped,
    jackknife_half,
    jackknife_interval,
    noise,
    signal_to_noise,
    split_cosine,
    splits,
    squared_norm,
    standard_error,
    widened,
    without_each,
)


def deal(vectors: np.ndarray, groups: int = 16, seed: int = 0) -> tuple[Grouped, np.ndarray]:
    """Vectors [text, d] dealt into groups at random; and each text's group."""
    where = np.random.default_rng(seed).integers(0, groups, len(vectors))
    sums, square = np.zeros((groups, vectors.shape[1])), np.zeros(groups)
    np.add.at(sums, where, vectors)
    np.add.at(square, where, np.square(vectors).sum(1))
    return grouped(sums, square, np.bincount(where, minlength=groups)), where


def draw(n: int, mean: float = 0.0, d: int = 12, seed: int = 0) -> np.ndarray:
    """Texts' vectors with a mean of the given norm and uneven noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.linspace(0.2, 1.5, d) + mean / np.sqrt(d)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 10**6), mean=st.floats(0, 3))
def test_the_squared_norm_is_the_mean_product_of_two_different_texts(n: int, seed: int, mean: float):
    vectors = draw(n, mean, seed=seed)
    found, _ = deal(vectors, seed=seed)
    products = vectors @ vectors.T
    wanted = products[~np.eye(n, dtype=bool)].mean()
    assert squared_norm(found, everyone(found))[0] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 30), seed=st.integers(0, 10**6))
def test_noise_and_signal_to_noise_are_those_of_the_vectors(n: int, seed: int):
    vectors = draw(n, 1.0, seed=seed)
    found, where = deal(vectors, seed=seed)
    trace = np.trace(np.atleast_2d(np.cov(vectors.T)))
    assert noise(found, everyone(found))[0] == pytest.approx(trace)
    ratio = n * np.square(vectors.mean(0)).sum() / trace
    assert signal_to_noise(found, everyone(found))[0] == pytest.approx(ratio)
    assert standard_error(found) == pytest.approx(np.sqrt(trace / n))
    for weights, left in zip(without_each(found), np.unique(where), strict=True):
        rest = vectors[where != left]
        if len(rest) > 1:
            trace = np.trace(np.atleast_2d(np.cov(rest.T)))
            assert noise(found, weights[None])[0] == pytest.approx(trace)


def test_leading_axes_are_read_apart():
    a, b = draw(20, 1.0, seed=1), draw(20, 0.0, seed=2)
    (one, _), (two, _) = deal(a), deal(b)
    both = Grouped(np.stack([one.gram, two.gram]), np.stack([one.square, two.square]), one.texts)
    for function in (split_cosine, flip_p, standard_error):
        assert function(both).tolist() == pytest.approx([float(function(one)), float(function(two))])
    for function in (squared_norm, noise, signal_to_noise):
        assert function(both, everyone(both))[:, 0].tolist() == pytest.approx(
            [function(x, everyone(x))[0] for x in (one, two)]
        )


def test_noise_adds_nothing_to_the_squared_norm_and_gives_a_ratio_of_one():
    norms, ratios, plain = [], [], []
    for seed in range(400):
        vectors = draw(20, seed=seed)
        found, _ = deal(vectors, seed=seed)
        norms.append(squared_norm(found, everyone(found))[0])
        ratios.append(signal_to_noise(found, everyone(found))[0])
        plain.append(np.square(vectors.mean(0)).sum())
    error = np.std(norms) / np.sqrt(len(norms))
    assert abs(np.mean(norms)) < 3 * error
    assert np.mean(plain) > 10 * error, "the plain norm is noise's share"
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_the_norms_interval_holds_the_truth_about_as_often_as_it_says():
    truth, hits, trials = 1.0, 0, 400
    for seed in range(trials):
        found, _ = deal(draw(60, truth, seed=seed), seed=seed)
        value = float(squared_norm(found, everyone(found))[0])
        interval = jackknife_interval(value, squared_norm(found, without_each(found)))
        assert interval is not None
        hits += interval[0] <= truth**2 <= interval[1]
    assert 0.92 <= hits / trials <= 0.98


def test_sign_flips_are_calibrated_and_see_a_mean():
    p = np.array([flip_p(deal(draw(40, seed=seed), seed=seed)[0], seed=seed) for seed in range(400)])
    assert 0.025 <= (p <= 0.05).mean() <= 0.08
    assert 0.4 < (p <= 0.5).mean() < 0.6
    strong = [flip_p(deal(draw(40, 1.5, seed=seed), seed=seed)[0], seed=seed) for seed in range(20)]
    assert max(strong) <= 0.01


def test_halves_agree_where_there_is_a_mean_and_not_in_noise():
    noisy = [float(split_cosine(deal(draw(40, seed=seed), seed=seed)[0])) for seed in range(60)]
    assert abs(np.mean(noisy)) < 0.1
    assert float(split_cosine(deal(draw(400, 5.0))[0])) > 0.98


def test_the_split_half_cosine_is_that_of_the_halves_means():
    vectors = draw(30, 0.5)
    found, where = deal(vectors, groups=4)
    cosines = []
    for half in itertools.combinations(range(4), 2):
        a, b = vectors[np.isin(where, half)].mean(0), vectors[~np.isin(where, half)].mean(0)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert float(split_cosine(found)) == pytest.approx(np.mean(cosines))
    keep = np.array([1.0, 1.0, 1.0, 0.0])
    rest, _ = deal(vectors, groups=4)
    left = where != 3
    again = [
        np.dot(vectors[left & np.isin(where, h)].sum(0), vectors[left & ~np.isin(where, h)].sum(0))
        / np.linalg.norm(vectors[left & np.isin(where, h)].sum(0))
        / np.linalg.norm(vectors[left & ~np.isin(where, h)].sum(0))
        for h in itertools.combinations(range(4), 2)
    ]
    assert float(split_cosine(rest, keep)) == pytest.approx(np.mean(again))


@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_splits_are_balanced_and_each_comes_once(groups: int):
    found = splits(groups)
    assert (found.sum(1) == groups // 2).all()
    if groups <= 8:
        halves = {
            frozenset([tuple(row), tuple(1 - row)]) for row in found.tolist() for row in [np.array(row)]
        }
        assert len(halves) == len(found)
    assert np.array_equal(found, splits(groups)), "the same in every contrast"


@pytest.mark.parametrize("groups", [0, 1, 5])
def test_an_odd_number_of_groups_cannot_be_halved(groups: int):
    with pytest.raises(BadInput, match="even"):
        splits(groups)


def test_no_data_is_never_zero():
    nothing = grouped(np.zeros((4, 3)), np.zeros(4), np.zeros(4, dtype=np.int64))
    one = grouped(np.diag([1.0, 0, 0, 0]), np.array([1.0, 0, 0, 0]), np.array([1, 0, 0, 0]))
    for found in (nothing, one):
        for value in (
            squared_norm(found, everyone(found)),
            noise(found, everyone(found)),
            signal_to_noise(found, everyone(found)),
            flip_p(found),
            split_cosine(found),
            standard_error(found),
        ):
            assert np.isnan(value).all()
    assert jackknife_interval(1.0, np.array([1.0])) is None
    assert np.isnan(jackknife_half(np.array([[1.0], [2.0]]))).all()


def test_texts_that_are_all_alike_have_no_noise_to_compare_with():
    found, _ = deal(np.tile(np.arange(1.0, 5.0), (30, 1)))
    assert np.isnan(signal_to_noise(found, everyone(found))).all()
    assert squared_norm(found, everyone(found))[0] == pytest.approx(30.0)


def test_replicates_over_groups_are_widened_to_what_few_groups_deserve():
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(1.0, 0.1, 1000))
    drawn[0], drawn[1] = 0.0, np.nan
    out = widened(drawn, 16, 400)
    assert out[0] == 0.0
    assert np.isnan(out[1])
    ratio = np.log(out[2:]).std() / np.log(drawn[2:]).std()
    assert 1.08 < ratio < 1.16
    assert np.log(out[2:]).mean() == pytest.approx(np.log(drawn[2:]).mean())
    assert widened(drawn, 1, 400) is drawn


def test_group_weights_are_the_same_for_whoever_asks():
    assert np.array_equal(group_weights(16, replicates=50, seed=3), group_weights(16, replicates=50, seed=3))
    assert group_weights(16, replicates=4000, seed=3).mean() == pytest.approx(1.0, abs=0.03)


def test_bootstrap_weights_leave_the_squared_norm_where_it_is():
    """A group drawn twice pairs none of its texts with itself: else every replicate would be too large."""
    means = []
    for seed in range(60):
        found, _ = deal(draw(40, 0.5, seed=seed), seed=seed)
        drawn = squared_norm(found, group_weights(16, replicates=200, seed=seed))
        means.append(np.nanmean(drawn) - squared_norm(found, everyone(found))[0])
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(len(means)) + 1e-3
