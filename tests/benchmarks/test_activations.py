"""What the benchmarks of statistics compare says the same, and what is to be flat is measured against what grows. No times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.case import PRESETS

from benchmarks import activations, flat, models

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models")
    models.make(where, SMOKE, torch.float32)
    return where


def test_whole_tensors_give_the_same_figures(folder: Path):
    case = activations.case(SMOKE, torch.float32, folder)
    assert case.accuracy is not None
    (row,) = case.accuracy()
    arms = {name: {"seconds": 1.0} for name in ("naive", "ours", "forward")}
    assert activations.goal({"arms": arms, "accuracy": [row]})["reached"]
    assert row["quantiles"] <= 1.01 * row["sketch_error"]


def test_a_dictionary_is_trained_from_the_pass_with_little_in_memory(folder: Path):
    case = flat.case(SMOKE, torch.float32, folder)
    trained: Any = case.arms["trained"].open()()
    assert trained.epochs == 1
    assert trained.rows > 4 * SMOKE.d
    stored: Any = case.arms["stored"].open()()
    assert stored.shape == (SMOKE.d, SMOKE.d)
    assert {*case.longer} == {f"{arm}_x{times}" for arm in ("pass", "trained", "stored") for times in (4, 16)}


def test_growth_is_held_against_what_storing_takes():
    def figures(peaks: tuple[float, float, float]) -> dict[str, Any]:
        longer = {
            f"{name}_x{n}": {"peak": p} for name in NAMES for n, p in zip((4, 16), peaks[1:], strict=True)
        }
        arms = {name: {"memory": {"peak": peaks[0]}} for name in NAMES}
        return {"arms": arms, "longer": longer, "notes": {"megabytes_of_states": [10.0, 40.0, 160.0]}}

    found = flat.goal(figures((20.0, 20.5, 21.5)))
    assert found["measured"]["pass"] == {"peak": [20.0, 20.5, 21.5], "of_states": 0.01, "times": 1.075}
    assert found["reached"]
    assert not flat.goal(figures((20.0, 50.0, 170.0)))["reached"]
    unmeasured = figures((20.0, 20.0, 20.0)) | {"longer": {}}
    assert flat.goal(unmeasured)["reached"] is None


NAMES = ("pass", "trained", "stored")
