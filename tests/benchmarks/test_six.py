"""Six methods read in one pass what six passes read, and nothing of it twice. No times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.case import PRESETS, Case
from benchmarks.counters import counted

from benchmarks import models, six
from finetrace.engine import PAIR

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("models")
    models.make(folder, SMOKE, torch.float32)
    return six.case(SMOKE, torch.float32, folder)


@pytest.fixture(scope="module")
def passed(case: Case) -> dict[str, Any]:
    return {name: case.arms[name].open()() for name in ("separate", "together")}


def test_one_pass_leaves_the_states_of_six_to_the_last_bit(passed: dict[str, Any]):
    found = six.same(passed["separate"], passed["together"])
    assert found.keys() == {*six.METHODS}
    assert all(one["bytes"] > 0 and one["differing"] == 0 for one in found.values())


def test_a_state_that_differs_in_one_place_is_seen(passed: dict[str, Any]):
    state = passed["together"]["kl", PAIR].state()
    name = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel())
    other = state[name].clone()
    other.view(-1)[0] = other.view(-1)[0].nextafter(torch.tensor(torch.inf, dtype=other.dtype))
    found = six.differing(state, {**state, name: other})
    assert 0 < found["differing"] <= 2
    assert six.differing(state, state)["differing"] == 0


def test_the_models_are_read_once_instead_of_six_times(case: Case):
    arms = case.arms
    alone, both = (counted(arms[name].open()).flop for name in ("kl", "together"))
    assert alone == pytest.approx(arms["kl"].flop, rel=0.15)
    # Covariances are large beside a model this small.
    assert alone < both < 2 * alone
    assert arms["separate"].flop / arms["together"].flop > 4


def test_the_goal_asks_for_both():
    arms = {name: {"ratio": {"median": 3.0}, "seconds": 1.0, "flop": 1} for name in ("separate", "together")}
    same = {"kl": {"differing": 0}}
    assert six.goal({"arms": arms, "notes": {"same": same}})["reached"]
    assert not six.goal({"arms": arms, "notes": {"same": {"kl": {"differing": 1}}}})["reached"]
