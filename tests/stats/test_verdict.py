"""The change verdict: what it says of planted and of benign pairs, and when it keeps silent."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.stats import (
    CHANGE_WORDS,
    SAFETY_WORDS,
    ChangeWord,
    Interval,
    Measured,
    SafetyWord,
    change_verdict,
    change_verdicts,
    overall,
    ratio_replicates,
    safety_verdict,
)


def exact(value: float) -> Measured:
    return Measured(float(value), clusters=None)


def from_texts(scale: float, seed: int = 0, n: int = 80, sd: float = 0.5) -> Measured:
    """A number over n texts that all share: what is common to the texts cancels in a paired ratio."""
    shared = np.random.default_rng(99).normal(size=n)
    own = np.random.default_rng(seed).normal(size=n)
    sums = scale * np.exp(sd * (0.9 * shared + 0.4 * own))
    keys = np.arange(n, dtype=np.uint64)
    replicates = ratio_replicates(sums, np.ones(n), keys, replicates=200)
    return Measured(float(sums.mean()), replicates, n=n, clusters=n)


NULLS = [from_texts(scale, seed=i + 1) for i, scale in enumerate((0.8, 1.0, 1.1, 1.25))]


def test_the_words():
    assert get_args(ChangeWord) == CHANGE_WORDS == ("beyond-nulls", "within-nulls", "undecided")
    assert get_args(SafetyWord) == SAFETY_WORDS == ("regressed", "within-margin", "undecided", "not-measured")


def test_the_numbers_are_those_of_a_t_prediction_interval():
    values = [0.8, 1.0, 1.1, 1.25]
    found = change_verdict(exact(9.0), [exact(v) for v in values], margin=1.5, tests=3)
    logs = np.log(values)
    scale = logs.std(ddof=1) * math.sqrt(1 + 1 / 4)
    d = math.log(9.0) - logs.mean()
    assert found.word == "beyond-nulls"
    assert found.ratio == pytest.approx(math.exp(d))
    assert found.null_centre == pytest.approx(stats.gmean(values))
    assert found.p == pytest.approx(stats.t.sf(d / scale, 3))
    assert found.p_holm == pytest.approx(3 * stats.t.sf(d / scale, 3))
    assert found.bound == pytest.approx(math.exp(max(math.log(1.5), stats.t.ppf(1 - 0.05 / 3, 3) * scale)))
    assert found.prediction_high == pytest.approx(math.exp(stats.t.ppf(0.95, 3) * scale))
    assert found.prediction_low == pytest.approx(math.exp(-stats.t.ppf(0.95, 3) * scale))
    assert (found.k, found.margin, found.low, found.high) == (4, 1.5, found.ratio, found.ratio)
    assert found.smallest_visible == found.bound


def test_planted_typical_and_smaller_pairs_over_texts():
    big, typical, small = (change_verdict(from_texts(scale, seed=50), NULLS) for scale in (10, 1.05, 0.1))
    assert (big.word, typical.word, small.word) == ("beyond-nulls", "within-nulls", "within-nulls")
    assert big.low is not None
    assert big.bound is not None
    assert big.ratio is not None
    assert big.high is not None
    assert big.bound < big.low < big.ratio < big.high
    assert big.smallest_visible == pytest.approx(big.bound * big.ratio / big.low)


def test_an_interval_across_the_bound_is_undecided_and_says_so():
    there = change_verdict(from_texts(3.0, seed=50), NULLS)
    assert there.bound is not None
    assert there.ratio is not None
    found = change_verdict(from_texts(3.0 * there.bound / there.ratio, seed=50), NULLS)
    assert found.word == "undecided"
    assert "neither above the bound" in found.reason


def test_the_smallest_visible_ratio_is_the_edge():
    found = change_verdict(from_texts(3.0, seed=50), NULLS)
    assert found.smallest_visible is not None
    assert found.ratio is not None
    for factor, word in ((1.01, "beyond-nulls"), (0.99, "undecided")):
        scale = 3.0 * factor * found.smallest_visible / found.ratio
        assert change_verdict(from_texts(scale, seed=50), NULLS).word == word


@given(st.floats(1e-12, 1e12), st.floats(0.2, 30))
@settings(max_examples=40, deadline=None)
def test_the_unit_of_the_number_does_not_matter(unit, scale):
    def in_unit(one: Measured) -> Measured:
        assert one.replicates is not None
        return Measured(one.value * unit, one.replicates * unit, one.n, one.clusters)

    pair = from_texts(scale, seed=50)
    here = change_verdict(pair, NULLS)
    there = change_verdict(in_unit(pair), [in_unit(null) for null in NULLS])
    for name in ("ratio", "low", "high", "bound", "p", "smallest_visible"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), rel=1e-6)
    edges = [here.bound, here.prediction_high, here.margin]
    if all(abs(a / b - 1) > 1e-6 for a in (here.low, here.high) for b in edges):  # not on the knife's edge
        assert there.word == here.word


@pytest.mark.parametrize(
    ("pair", "nulls", "said"),
    [
        (exact(9), [], "none to compare"),
        (exact(9), [exact(1), exact(1.1)], "only 2"),
        (exact(0), [exact(v) for v in (1, 1.1, 1.2)], "not positive"),
        (exact(9), [exact(v) for v in (1, -1.1, 1.2)], "not positive"),
        (exact(math.nan), [exact(v) for v in (1, 1.1, 1.2)], "no data"),
        (exact(math.inf), [exact(v) for v in (1, 1.1, 1.2)], "no data"),
        (exact(9), [exact(1), exact(1), exact(1)], "copies"),
    ],
)
def test_nothing_to_decide_with(pair, nulls, said):
    found = change_verdict(pair, nulls)
    assert (found.word, found.p, found.low) == ("undecided", None, None)
    assert said in found.reason


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Measured(9.0, None, n=80, clusters=80), "no bootstrap replicates"),
        (Measured(9.0, NULLS[0].replicates, n=80, clusters=1), "fewer than two texts"),
        (Measured(9.0, np.full(200, math.nan), n=80, clusters=80), "200 of 200"),
        (exact(9.0), "some of the numbers"),
    ],
)
def test_a_number_without_its_uncertainty_is_undecided_but_keeps_its_ratio(pair, said):
    found = change_verdict(pair, NULLS)
    assert (found.word, found.low, found.smallest_visible) == ("undecided", None, None)
    assert said in found.reason
    assert found.null_centre is not None
    assert found.ratio == pytest.approx(9.0 / found.null_centre)
    assert found.p is not None


def test_a_few_replicates_without_data_are_dropped_and_counted():
    pair = from_texts(10, seed=50)
    assert pair.replicates is not None
    gaps = pair.replicates.copy()
    gaps[:5] = math.nan
    found = change_verdict(Measured(pair.value, gaps, pair.n, pair.clusters), NULLS)
    assert (found.word, found.dropped) == ("beyond-nulls", 5)


def test_wrong_arguments_are_refused():
    for margin, alpha, tests in ((0.5, 0.05, 1), (math.nan, 0.05, 1), (2.0, 5.0, 1), (2.0, 0.05, 0)):
        with pytest.raises(BadInput):
            change_verdict(exact(9), [exact(1)] * 3, margin=margin, alpha=alpha, tests=tests)
    short = Measured(1.0, np.ones(3), n=80, clusters=80)
    with pytest.raises(BadInput, match="as many replicates"):
        change_verdict(short, NULLS)


def test_holm_steps_down_over_slices():
    nulls = [exact(v) for v in (0.6, 0.9, 1.0, 1.2, 1.5)]
    scale = np.log([n.value for n in nulls]).std(ddof=1) * math.sqrt(1 + 1 / 5)
    centre = np.exp(np.log([n.value for n in nulls]).mean())
    wanted = {"b": 0.024, "a": 0.01, "c": 0.5}  # 0.01 <= .05/3, then 0.024 <= .05/2, though 0.024 > .05/3
    slices = {
        name: (exact(centre * math.exp(stats.t.isf(p, 4) * scale)), nulls) for name, p in wanted.items()
    }
    slices["empty"] = (exact(math.nan), nulls)
    found = change_verdicts(slices, margin=1.0)
    assert list(found) == list(slices)
    assert [found[name].word for name in ("a", "b", "c", "empty")] == [
        "beyond-nulls",
        "beyond-nulls",
        "within-nulls",
        "undecided",
    ]
    assert [found[name].p_holm for name in ("a", "b", "c")] == pytest.approx([0.03, 0.048, 0.5])
    assert change_verdict(*slices["b"], margin=1.0, tests=3).word == "undecided"
    larger = change_verdicts(slices, margin=1.0, tests=8)
    assert larger["a"].word == "undecided"
    assert larger["a"].p_holm == pytest.approx(0.08)


def test_a_failed_step_stops_the_later_ones():
    nulls = [exact(v) for v in (0.6, 0.9, 1.0, 1.2, 1.5)]
    logs = np.log([n.value for n in nulls])
    scale = logs.std(ddof=1) * math.sqrt(1 + 1 / 5)

    def slice_with(p: float) -> tuple[Measured, list[Measured]]:
        return exact(math.exp(logs.mean() + stats.t.isf(p, 4) * scale)), nulls

    found = change_verdicts({"x": slice_with(0.03), "y": slice_with(0.04)}, margin=1.0)
    assert {v.word for v in found.values()} == {"undecided"}
    assert found["x"].bound == pytest.approx(found["y"].bound)
    assert [v.p_holm for v in found.values()] == pytest.approx([0.06, 0.06])


def test_overall():
    assert overall(["beyond-nulls", "within-nulls", "undecided"]) == "beyond-nulls"
    assert overall(["within-nulls", "undecided"]) == "undecided"
    assert overall(["within-nulls"]) == "within-nulls"
    assert overall([]) == "undecided"


def test_safety_words():
    assert safety_verdict(None, 0.05) == "not-measured"
    assert safety_verdict(Interval(0.06, 0.2, 0.95), 0.05) == "regressed"
    assert safety_verdict(Interval(-0.1, 0.05, 0.95), 0.05) == "within-margin"
    assert safety_verdict(Interval(-0.1, 0.2, 0.95), 0.05) == "undecided"


def test_benign_pairs_are_beyond_at_most_as_often_as_said():
    """margin=1 so that only the prediction bound stands between a benign pair and a false alarm."""
    generator, each, total = np.random.default_rng(7), 500, 0
    for sd in (0.1, 0.3, 0.6):
        for k in (3, 4, 5, 8, 20):
            drawn = np.exp(sd * generator.normal(size=(each, k + 1)))
            hits = sum(
                change_verdict(exact(row[0]), [exact(v) for v in row[1:]], margin=1.0).word == "beyond-nulls"
                for row in drawn
            )
            assert hits / each <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / each)
            total += hits
    assert total / (15 * each) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / (15 * each))


def test_benign_pairs_over_several_slices_too():
    generator, pairs = np.random.default_rng(8), 250
    hits = 0
    for row in np.exp(0.3 * generator.normal(size=(pairs, 5, 5))):
        slices = {str(i): (exact(s[0]), [exact(v) for v in s[1:]]) for i, s in enumerate(row)}
        hits += overall(v.word for v in change_verdicts(slices, margin=1.0).values()) == "beyond-nulls"
    assert hits / pairs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / pairs)


def test_a_planted_tenfold_change_is_found():
    generator, pairs = np.random.default_rng(9), 300
    drawn = np.exp(0.1 * generator.normal(size=(pairs, 5)))
    hits = sum(
        change_verdict(exact(10 * row[0]), [exact(v) for v in row[1:]], tests=5).word == "beyond-nulls"
        for row in drawn
    )
    assert hits / pairs > 0.95


def test_importing_the_package_loads_no_scipy():
    program = "import sys, finetrace, finetrace.stats; print('scipy' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
