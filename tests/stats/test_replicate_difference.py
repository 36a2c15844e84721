"""Differences of two figures from their paired replicates."""

from __future__ import annotations

import numpy as np
import pytest

from finetrace.core.errors import BadInput
from finetrace.stats import paired_difference, replicate_difference
from finetrace.stats.bootstrap import ratio_replicates


def test_it_agrees_with_the_difference_that_sees_the_texts():
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 2**63, 200).astype(np.uint64)
    counts = generator.integers(5, 40, 200).astype(float)
    shared = generator.normal(1.0, 0.5, 200)
    first, second = shared * counts, (shared + generator.normal(0.1, 0.2, 200)) * counts
    seen = paired_difference((first, counts), (second, counts), keys)
    drawn = [ratio_replicates(sums, counts, keys) for sums in (first, second)]
    found = replicate_difference(seen.estimate, *drawn, clusters=200)
    assert found is not None
    assert seen.interval is not None
    width = seen.interval.high - seen.interval.low
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert found.low < seen.estimate < found.high
    assert found.p < 0.05


def test_pairing_is_what_makes_it_narrow():
    generator = np.random.default_rng(1)
    shared = generator.normal(size=500)
    first, second = shared, 1 + shared + 0.01 * generator.normal(size=500)
    paired = replicate_difference(1.0, first, second, clusters=50)
    broken = replicate_difference(1.0, first, np.roll(second, 1), clusters=50)
    assert paired is not None
    assert broken is not None
    assert (broken.high - broken.low) > 20 * (paired.high - paired.low)


def test_equal_figures_have_p_one_and_certain_ones_p_zero():
    same = np.arange(10.0)
    equal = replicate_difference(0.0, same, same, clusters=5)
    shifted = replicate_difference(2.0, same, same + 2, clusters=5)
    assert equal is not None
    assert shifted is not None
    assert (equal.p, shifted.p) == (1.0, 0.0)


@pytest.mark.parametrize(("clusters", "missing"), [(1, 0), (30, 20)])
def test_too_little_gives_none(clusters: int, missing: int):
    second = np.arange(100.0)
    second[:missing] = np.nan
    assert replicate_difference(1.0, np.zeros(100), second, clusters=clusters) is None


def test_replicates_of_other_lengths_are_not_paired():
    with pytest.raises(BadInput, match="as many replicates"):
        replicate_difference(1.0, np.zeros(10), np.zeros(11), clusters=5)
