"""The benchmark of drift says what it should, forms nothing large, and its errors are what it claims. No times."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.case import PRESETS
from benchmarks.counters import counted

from benchmarks import drift_algebra, run

SMOKE = PRESETS["smoke"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", ["drift", "drift-attention"])
def test_one_line_says_everything(case: str, capsys: pytest.CaptureFixture[str]):
    run.main(["--case", case, "--preset", "smoke", "--rounds", "1", "--no-memory"])
    found = json.loads(capsys.readouterr().out)
    assert found["case"] == case
    assert found["arms"].keys() == {"peer", "merged", "ours", "ours_quick", "ours_l2", "floor"}
    assert {"name", "measured", "bound", "reached"} <= found["goal"].keys()
    for row in found["accuracy"]:
        assert row["ours_l2"] < 1e-12
        assert row["ours_angle"] < 1e-5
        assert row["ours_quick_angle"] < 1e-3
    small = found["accuracy"][-1]
    assert small["peer_angle"] > 1
    assert small["merged_l2"] > 0.1


def test_only_the_peer_forms_the_change():
    arms = drift_algebra.case(SMOKE, torch.float32).arms
    whole = 4 * max(i * o for i, o in SMOKE.block_shapes())
    assert counted(arms["peer"].open()).largest >= whole
    for name in ("ours", "ours_quick", "ours_l2"):
        assert counted(arms[name].open()).largest < whole


def test_products_are_as_counted_on_paper():
    arms = drift_algebra.attention_case(SMOKE, torch.float32).arms
    for name in ("peer", "merged", "floor"):
        assert counted(arms[name].open()).flop == arms[name].flop
    # The Gram products, which are small beside the weights' in any model but this one.
    grams = counted(arms["ours_l2"].open()).flop
    assert counted(arms["ours"].open()).flop == arms["ours"].flop + grams
