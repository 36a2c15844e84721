"""The benchmarks of dictionaries compare trainers of equal loss, and say so. No times."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks.case import PRESETS

from benchmarks import dictionaries, run


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def equal(rows: list[dict[str, float]]) -> None:
    for row in rows:
        assert row["ours_float32"] < 1e-3
        assert row["ours"] < 1e-2
    assert rows[-1]["peer"] < 0.9 * rows[0]["peer"]


def test_an_saes_losses_are_equal_and_fall(capsys: pytest.CaptureFixture[str]):
    run.main(["--case", "sae", "--preset", "smoke", "--rounds", "1", "--no-memory"])
    found = json.loads(capsys.readouterr().out)
    assert found["arms"].keys() == {"peer", "peer_autocast", "ours", "ours_float32", "floor"}
    assert {"name", "measured", "off", "bound", "reached"} <= found["goal"].keys()
    equal(found["accuracy"])


def test_a_crosscoders_losses_are_equal_and_fall():
    case = dictionaries.crosscoder_case(PRESETS["smoke"], torch.bfloat16)
    assert case.accuracy is not None
    equal(case.accuracy())
