"""Moderated variances: the law they assume is recovered, and z beside few nulls is calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from finetrace.stats.moderated import LARGEST, _trigamma_inverse, moderated, z_against, z_of_t


def sample(
    items: int, dof: int, prior: float, typical: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """True variances from the scaled inverse chi-squared law, and sample variances of `dof`."""
    rng = np.random.default_rng(seed)
    true = typical * prior / rng.chisquare(prior, items) if np.isfinite(prior) else np.full(items, typical)
    return true, true * rng.chisquare(dof, items) / dof


@pytest.mark.parametrize(("dof", "prior"), [(3, 4.0), (3, 20.0), (15, 8.0)])
def test_the_law_that_was_drawn_from_is_recovered(dof: int, prior: float):
    true, seen = sample(40_000, dof, prior, 2.5)
    found = moderated(seen, dof)
    assert found.dof == pytest.approx(dof + prior, rel=0.12)
    raw, better = np.log(seen / true), np.log(found.variance / true)
    assert better.std() < raw.std(), "nearer to the truth than the raw variances"


def test_equal_variances_become_one():
    _, seen = sample(500, 3, np.inf, 2.5)
    found = moderated(seen, 3)
    assert found.dof > 100
    assert found.variance.std() < 0.1 * seen.std()
    assert np.median(found.variance) == pytest.approx(2.5, rel=0.15)


def test_a_variance_of_zero_is_drawn_up():
    _, seen = sample(500, 3, 4.0, 1.0)
    seen[0] = 0.0
    assert moderated(seen, 3).variance[0] > 0.1


def test_too_few_variances_are_left_alone():
    assert moderated(np.array([0.0, 2.0]), 3).variance.tolist() == [0.0, 2.0]


def test_z_has_the_tail_of_t():
    t = np.array([-2.0, 0.0, 0.5, 3.0])
    assert stats.norm.sf(z_of_t(t, 5.0)) == pytest.approx(stats.t.sf(t, 5.0))
    assert z_of_t(np.array([1e9, -1e9]), np.inf).tolist() == [LARGEST, -LARGEST]
    assert np.isfinite(z_of_t(np.array([1e9]), 40.0)).all()


@pytest.mark.parametrize("k", [3, 4, 20])
def test_one_more_null_is_as_far_out_as_it_should_be(k: int):
    """A plain z of one draw beside four would call 1 in 100 tokens beyond 10; this one has normal tails."""
    rng = np.random.default_rng(k)
    true, _ = sample(20_000, 3, 6.0, 1.0, seed=k)
    draws = rng.normal(size=(k + 1, len(true))) * np.sqrt(true) + rng.normal(size=len(true))
    z = z_against(draws[0], draws[1:])
    assert z is not None
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.05, abs=0.01)
    assert (np.abs(z) > 3.29).mean() < 0.004


def test_with_fewer_than_two_nulls_there_is_no_z():
    assert z_against(np.ones(3), np.ones((1, 3))) is None
    assert z_against(np.ones(3), np.ones((0, 3))) is None


def test_nulls_that_do_not_vary_give_no_z():
    found = z_against(np.ones(3), np.zeros((4, 3)))
    assert found is not None
    assert np.isnan(found).all()


@pytest.mark.parametrize("y", [0.01, 0.5, 3.0, 200.0])
def test_the_inverse_of_trigamma(y: float):
    assert _trigamma_inverse(float(special.polygamma(1, y))) == pytest.approx(y, rel=1e-6)
