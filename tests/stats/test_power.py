"""The figures that the documents quote, and power against the verdict itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import (
    Measured,
    change_verdict,
    detection_power,
    false_positive_bound,
    minimal_detectable_ratio,
)


def test_the_quoted_bounds():
    assert round(false_positive_bound(0, 20), 3) == 0.139
    assert round(false_positive_bound(0, 60), 3) == 0.049
    assert false_positive_bound(0, 0) == 1.0
    assert false_positive_bound(5, 5) == 1.0


@pytest.mark.parametrize(("failures", "trials"), [(0, 20), (1, 20), (7, 31)])
def test_the_bound_is_scipys(failures, trials):
    known = stats.binomtest(failures, trials, alternative="less").proportion_ci(0.95, method="exact").high
    assert false_positive_bound(failures, trials) == pytest.approx(known, abs=1e-12)
    with pytest.raises(BadInput):
        false_positive_bound(trials + 1, trials)


def test_power_is_what_the_verdict_does():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(800):
        nulls = [Measured(float(v), clusters=None) for v in np.exp(0.3 * generator.normal(size=4))]
        pair = Measured(float(4 * np.exp(0.3 * generator.normal())), clusters=None)
        hits += change_verdict(pair, nulls, tests=2).word == "beyond-nulls"
    power = detection_power(4, 0.3, 4, tests=2)
    assert hits / 800 == pytest.approx(power, abs=4 * np.sqrt(power * (1 - power) / 800))


def test_the_minimal_ratio_has_the_power_and_shrinks_with_nulls():
    found = [minimal_detectable_ratio(0.3, k, tests=5) for k in (4, 5, 8, 20)]
    assert found == sorted(found, reverse=True)
    assert detection_power(found[0], 0.3, 4, tests=5) == pytest.approx(0.8, abs=1e-4)
    assert minimal_detectable_ratio(0.3, 4, sampling_se=0.2) > minimal_detectable_ratio(0.3, 4)
    assert minimal_detectable_ratio(0.01, 20) == pytest.approx(2.0, rel=0.02)
    with pytest.raises(BadInput, match="k >= 3"):
        minimal_detectable_ratio(0.3, 2)
