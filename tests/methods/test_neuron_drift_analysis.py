"""Drift tables into comparisons: effects by hand, what is not adapted, several seeds and steps, words that are withheld."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetrace.core.errors import BadInput
from finetrace.core.result import Columns, decode, encode
from finetrace.methods.neuron_drift.analysis import Contrast, Settings, analyse
from finetrace.methods.neuron_drift.describe import verdicts_table
from finetrace.methods.neuron_drift.result import Analysis
from finetrace.methods.neuron_drift.tables import COLUMNS, grid, layer_of

SIZES = {
    "safety_only": {
        f"model.layers.{layer}.{kind}": 40 for layer in range(8) for kind in ("q_proj", "up_proj")
    }
}
CONTRASTS = (
    Contrast("safety_only", "matched", "safety_only", "control", 0.95, {"column": 0.01}),
    Contrast("safety_only", "placebo", "safety_only", "placebo"),
)


def table(ratio=1.0, seeds=1, steps=(10,), noise=0.01, kinds=("q_proj",), seed=0, dose=1.0):
    """The safety group moves `ratio` times as much as the control and the placebo in every adapted matrix."""
    generator, rows = np.random.default_rng(seed), []
    for s in range(seeds):
        for step in steps:
            for layer in range(8):
                for kind in kinds:
                    module = f"model.layers.{layer}.{kind}"
                    for group, n, times in (
                        ("all", 4000, 1), ("safety_only", 40, ratio), ("control", 40, 1), ("placebo", 50, 1),
                    ):  # fmt: skip
                        size = dose * step * times * math.exp(noise * generator.normal())
                        rows.append((s, step, group, module, layer, n, n * size**2, n * 9.0, 0.1))
    return Columns(
        {
            name: list(values) if name in ("group", "module") else np.array(values)
            for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)
        }
    )


def comparison(found: Analysis, kind="matched"):
    return next(c for c in found.comparisons if c.kind == kind)


def test_an_effect_is_found_and_named():
    found = analyse(table(1.5), CONTRASTS, SIZES)
    matched = comparison(found)
    assert matched.theta.value == pytest.approx(math.log(1.5), abs=0.02)
    assert (matched.word, matched.layers, matched.matrices, matched.seeds) == ("different", 8, 8, 1)
    assert matched.theta.low is not None
    assert matched.theta.low < math.log(1.5) < (matched.theta.high or 0)
    assert [claim.word for claim in found.claims] == ["supported", "not supported"]
    assert comparison(found, "placebo").p_holm is not None
    assert found.family == 2


def test_no_effect_is_equivalence_and_never_proof():
    found = analyse(table(1.0), CONTRASTS, SIZES)
    assert comparison(found).word == "equivalent"
    assert [claim.word for claim in found.claims] == ["not supported", "consistent"]
    assert "no proof of new circuits" in found.claims[1].sentence


def test_a_change_of_dose_changes_no_ratio():
    one, ten = (comparison(analyse(table(1.3, dose=d), CONTRASTS, SIZES)) for d in (1.0, 10.0))
    assert one.theta.value == pytest.approx(ten.theta.value)


def test_what_is_not_adapted_is_no_data_and_never_a_zero():
    found = analyse(table(1.5), CONTRASTS, SIZES)
    (group,) = found.groups
    assert (group.entries, group.adapted, group.adapted_share, group.matrices) == (640, 320, 0.5, 8)
    assert group.relative == pytest.approx(10 * 1.5 / 3, rel=0.02)
    both = table(1.5, kinds=("q_proj", "up_proj"))
    zero = np.array([("up_proj" in module) for module in both.data["module"]])
    both.data["square"] = np.where(zero, 0.0, both.data["square"])
    both.data["dot"] = np.where(zero, 0.0, both.data["dot"])
    again = analyse(both, CONTRASTS, SIZES)
    assert comparison(again).theta.value == pytest.approx(comparison(found).theta.value, abs=0.02)
    assert (again.groups[0].adapted, again.groups[0].matrices) == (320, 8)
    counts = zip(*(again.counts.data[key] for key in ("layer", "adapted")), strict=True)
    assert [tuple(map(int, pair)) for pair in counts] == [(layer, 40) for layer in range(8)]


def test_seeds_and_steps():
    found = analyse(table(1.4, seeds=5, steps=(0, 10, 20)), CONTRASTS, SIZES)
    assert comparison(found).seeds == 5
    assert sorted(set(found.curves.data["step"])) == [10, 20]  # at step 0 nothing has moved
    theta = [
        t
        for t, kind in zip(found.curves.data["theta"], found.curves.data["kind"], strict=True)
        if kind == "matched"
    ]
    assert theta == pytest.approx([math.log(1.4)] * 2, abs=0.02)
    assert len(found.map) == 8
    assert (np.asarray(found.map.data["q"]) < 0.05).all()
    l2 = list(found.steps.data["l2"])
    assert l2[1] == pytest.approx(2 * l2[0], rel=0.02)


def test_a_row_that_came_twice_counts_once():
    rows = table(1.5)
    twice = Columns({key: [*column, *column] if isinstance(column, list) else np.r_[column, column] for key, column in rows.data.items()})  # fmt: skip
    assert comparison(analyse(twice, CONTRASTS, SIZES)).theta.value == pytest.approx(
        comparison(analyse(rows, CONTRASTS, SIZES)).theta.value or 0
    )


@pytest.mark.parametrize(
    ("rate", "ceiling", "why"), [(0.79, 0.9, "found a partner"), (0.95, 0.49, "mostly noise")]
)
def test_groups_or_controls_that_carry_no_verdict_get_none(rate, ceiling, why):
    contrasts = (Contrast("safety_only", "matched", "safety_only", "control", rate),)
    found = analyse(
        table(1.5), contrasts, SIZES, settings=Settings(ceilings={"safety_only": ceiling}, draws=99)
    )
    assert comparison(found).word == "undecided"
    assert why in comparison(found).reason
    assert [claim.word for claim in found.claims] == ["undecided", "undecided"]


def test_one_layer_of_one_run_is_inconclusive():
    rows = table(1.5)
    keep = rows.data["layer"] == 3
    assert isinstance(keep, np.ndarray)
    one = Columns({key: np.asarray(column)[keep] for key, column in rows.data.items()})
    matched = comparison(analyse(one, CONTRASTS, SIZES))
    assert matched.theta.value is not None
    assert (matched.theta.low, matched.p, matched.word) == (None, None, "inconclusive")
    assert "one layer of one run" in matched.reason


def test_two_layers_of_two_seeds_that_differ_name_no_detectable_ratio():
    rows = table(1.0, seeds=2, noise=0.0)
    keep = np.asarray(rows.data["layer"]) < 2
    two = Columns({key: np.asarray(column)[keep] for key, column in rows.data.items()})
    log_ratio = np.array([[0.3, 0.0], [0.1, 0.25]])[
        np.asarray(two.data["seed"], int), np.asarray(two.data["layer"], int)
    ]
    mine = np.asarray(two.data["group"]) == "safety_only"
    two.data["square"] = np.asarray(two.data["square"]) * np.exp(2 * log_ratio * mine)
    found = analyse(two, CONTRASTS, SIZES)
    matched = comparison(found)
    assert (matched.seeds, matched.layers) == (2, 2)
    assert matched.theta.value == pytest.approx(0.1625)
    assert (matched.smallest_detectable, matched.word) == (None, "inconclusive")
    assert "too few layers and seeds" in matched.reason
    page = verdicts_table(found)
    row = dict(zip(page.columns, page.rows[0], strict=True))
    assert (row["ratio"], row["low"]) == (pytest.approx(math.exp(0.1625)), 0.0)
    assert (row["high"], row["smallest_seen"]) == (None, None)


def test_a_group_that_nothing_touched_has_no_figures():
    found = analyse(
        table(), (Contrast("safety_only", "matched", "absent", "control"),), SIZES | {"absent": {}}
    )
    assert comparison(found).theta.value is None
    assert comparison(found).theta.n == 0
    absent = found.groups[1]
    assert (absent.entries, absent.adapted_share, absent.l2, absent.relative) == (0, None, None, None)


def test_an_analysis_survives_the_shelf():
    found = analyse(table(1.5, seeds=3), CONTRASTS, SIZES)
    assert encode(decode(Analysis, encode(found))).body == encode(found).body


def test_a_broken_table_says_what_it_lacks():
    with pytest.raises(BadInput, match="lacks the columns square"):
        grid(Columns({name: [] for name in COLUMNS if name != "square"}))
    with pytest.raises(BadInput, match="no rows"):
        grid(Columns({name: [] for name in COLUMNS}))
    assert layer_of("model.layers.11.mlp.up_proj") == 11
