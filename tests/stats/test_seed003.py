"""Seed 003's own figures, as its reference describes them, and that its rule cannot come out otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from finetrace.stats import seed003_cohens_d, seed003_rule, seed003_summary


def test_figures_by_hand():
    found = seed003_summary(np.array([0.0, -0.2, 0.1, 0.3]), np.array([1.0, 0.5, 1e-9, -0.1]))
    assert found is not None
    assert found.n == 4
    assert found.mean == pytest.approx(0.15)
    assert found.relative_mean == pytest.approx((0 + 0.4 + 0 + 3.0) / 4)
    assert found.relative_largest == pytest.approx(3.0)
    assert found.median == pytest.approx(0.15)
    assert seed003_summary(np.zeros(0), np.zeros(0)) is None


def test_d_is_from_summaries():
    assert seed003_cohens_d(2.0, 1.0, 1.0, 3.0) == pytest.approx(1 / np.sqrt(5))
    assert seed003_cohens_d(1.0, 0.0, 1.0, 0.0) is None


def test_the_rule_cannot_fail_at_the_size_of_real_changes():
    """The largest single change it published was 0.0079: even a group of nothing but that is no H1."""
    weight = np.ones(100)
    least, most = (seed003_summary(np.full(100, change), weight) for change in (0.0, 0.0079))
    assert least is not None
    assert most is not None
    assert seed003_rule(most, least) == "H2"
