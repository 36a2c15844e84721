"""On fine-tunes that know nothing of safety: no effect is reported, intervals cover, and a planted effect is found.

Beside it, what seed 003's own analysis makes of the same noise.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from tests.methods.drift_nulls import World, analysed, entries, pools, tunes, world

from finetrace.stats import Pooled, group_verdict, seed003_cohens_d, seed003_rule, seed003_summary
from finetrace.weights.controls import magnitude_matched

SEEDS, RUNS = 5, 30
NULLS = ("independent", "scales", "merged")


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [world(seed) for seed in range(6)]


def experiments(
    worlds: list[World], null: str, planted: float = 1.0, control: str = "matched"
) -> list[Pooled]:
    """180 experiments of five training seeds each, 30 a world."""
    found = []
    for n, made in enumerate(worlds):
        found += pools(tunes(made, null, SEEDS * RUNS, n, planted), SEEDS, control)
    return found


def share_covered(found: list[Pooled], truth: float) -> float:
    intervals = [interval for one in found if (interval := one.interval())]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@pytest.mark.parametrize("null", NULLS)
def test_noise_is_no_effect_and_intervals_cover(worlds: list[World], null: str):
    found = experiments(worlds, null)
    words = Counter(group_verdict(one).word for one in found)
    error = 2.6 * math.sqrt(0.05 * 0.95 / len(found))
    assert min(made.matched.rate or 0 for made in worlds) > 0.95
    assert words["different"] == 0
    assert words["equivalent"] > 0.85 * len(found)
    assert 0.93 - error <= share_covered(found, 0.0) <= 0.97 + error
    assert np.mean([(one.p or 1) < 0.05 for one in found]) <= 0.07 + error
    # What matching leaves of the scales that score and change share is far inside the margin of 0.095.
    assert abs(np.mean([one.value for one in found])) < 0.012


def test_random_controls_take_shared_scales_for_safety(worlds: list[World]):
    """So does a control of the same size: only rows and columns explain it."""
    against_random = experiments(worlds[:2], "scales", control="random")
    assert {group_verdict(one).word for one in against_random} == {"different"}
    made = worlds[0]
    by_size = magnitude_matched(made.safety, made.weights, 0)
    found = tunes(made, "scales", 20, 0)
    theta = []
    for name in made.weights:
        pairs = by_size.pairs[name]
        first, second = (found.changes(name, pairs[:, side]).square().mean(1).numpy() for side in (0, 1))
        theta.append(0.5 * np.log(first / second))
    assert np.mean(theta) > 0.2


@pytest.mark.parametrize("planted", [0.8, 1.25, 1.5])
def test_a_planted_effect_is_found(worlds: list[World], planted: float):
    found = experiments(worlds[:2], "scales", planted)
    assert np.mean([one.value for one in found]) == pytest.approx(math.log(planted), abs=0.015)
    assert Counter(group_verdict(one).word for one in found)["different"] > 0.95 * len(found)


def test_an_effect_inside_the_margin_is_called_negligible_at_most(worlds: list[World]):
    words = Counter(group_verdict(one).word for one in experiments(worlds[:2], "independent", 1.05))
    assert words["different"] <= 0.05 * words.total()
    assert words["different-but-negligible"] > words["equivalent"]


@pytest.mark.parametrize(("planted", "word"), [(1.0, "equivalent"), (1.4, "different")])
def test_the_whole_analysis_says_the_same(worlds: list[World], planted: float, word: str):
    """From drift rows and matched pairs to words, against what the quick simulation pools."""
    found = tunes(worlds[0], "scales", SEEDS, 3, planted)
    analysis, (quick,) = analysed(found, SEEDS), pools(found, SEEDS)
    matched = next(c for c in analysis.comparisons if c.kind == "matched")
    assert matched.theta.value == pytest.approx(quick.value, rel=1e-9)
    assert (matched.word, matched.seeds, matched.layers, matched.matrices) == (word, SEEDS, 6, 18)
    for p in (matched.p_permutation, matched.p_flip):
        assert p is not None
        assert (p < 0.05) == (planted > 1)
    assert matched.superiority is not None
    assert ((matched.superiority.low or 0) > 0.5) == (planted > 1)


def test_seed_003_finds_ten_times_in_pure_noise(worlds: list[World]):
    """Its relative drift of random weights over the safety group's; its d and its rule see nothing in the same data."""
    ratios = []
    for made in worlds:
        found = tunes(made, "independent", SEEDS, 7)
        safety, random = (seed003_summary(*entries(found, g)) for g in (made.safety, made.random))
        assert safety is not None
        assert random is not None
        ratios.append(random.relative_mean / safety.relative_mean)
        assert (safety.median, random.median) == (0, 0)
        d = seed003_cohens_d(safety.mean, safety.sd, random.mean, random.sd)
        assert d is not None
        assert abs(d) < 0.1
        assert seed003_rule(safety, random) == "H2"
        (ours,) = pools(found, SEEDS)
        assert group_verdict(ours).word in ("equivalent", "different-but-negligible")
        assert abs(ours.value) < math.log(1.05)
    assert np.median(ratios) > 7
