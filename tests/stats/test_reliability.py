"""The noise ceiling against a simulation of scores, and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from finetrace.core.errors import BadInput
from finetrace.stats import noise_ceiling
from finetrace.stats.reliability import jaccard_of_overlap, overlap_of_jaccard


def jaccard(a, b, fraction):
    top = [x >= np.quantile(x, 1 - fraction) for x in (a, b)]
    return (top[0] & top[1]).sum() / (top[0] | top[1]).sum()


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_it_foretells_the_overlap_of_two_whole_sets(noise, fraction):
    generator = np.random.default_rng(0)
    true = generator.normal(size=300_000)
    halves = [true + noise * 2**0.5 * generator.normal(size=len(true)) for _ in range(4)]
    # Any rising function of the scores gives the same groups: only ranks matter.
    split = jaccard(np.exp(halves[0]), halves[1], fraction)
    whole = jaccard(halves[0] + halves[1], halves[2] + halves[3], fraction)
    assert noise_ceiling(split, fraction) == pytest.approx(whole, abs=0.02)


def test_chance_stays_chance_and_one_stays_one():
    assert noise_ceiling(0.0, 0.1) == pytest.approx(0.1 / 1.9)
    assert noise_ceiling(1.0, 0.1) == pytest.approx(1.0)
    assert overlap_of_jaccard(jaccard_of_overlap(0.3)) == pytest.approx(0.3)
    for wrong in ((0.5, 0.0), (0.5, 1.0), (1.5, 0.1)):
        with pytest.raises(BadInput):
            noise_ceiling(*wrong)
