"""The benchmarks of dictionaries compare trainers of equal loss, and say so. No times."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import run


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", ["sae", "crosscoder"])
def test_losses_are_equal_and_fall(case: str, capsys: pytest.CaptureFixture[str]):
    run.main(["--case", case, "--preset", "smoke", "--rounds", "1", "--no-memory"])
    found = json.loads(capsys.readouterr().out)
    assert found["arms"].keys() == {"peer", "peer_autocast", "ours", "ours_float32", "floor"}
    assert {"name", "measured", "off", "bound", "reached"} <= found["goal"].keys()
    for row in found["accuracy"]:
        assert row["ours_float32"] < 1e-3
        assert row["ours"] < 1e-2
    assert found["accuracy"][-1]["peer"] < 0.9 * found["accuracy"][0]["peer"]
