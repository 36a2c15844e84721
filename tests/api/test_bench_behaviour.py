"""The behaviour benchmark: its matrix by hand, and a run on tiny models whose truth is made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import world

from finetrace.api.bench import behaviour as room
from finetrace.api.bench.behaviour import Behaved, BehaviourBench, bench_behaviour
from finetrace.api.bench.behaviour_tables import as_json, as_markdown, tables
from finetrace.api.bench.zoo import Zoo
from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.findings import Reading, SafetyWord, Worsening
from finetrace.methods.behaviour import METHOD
from finetrace.stats import false_positive_bound

KEYS = [measure.key for measure in METHOD.measures]


def estimate(value: float | None) -> Estimate:
    ends = (None, None) if value is None else (value - 0.01, value + 0.01)
    return Estimate(value, "share", 200, 20, *ends)


def side(name: str, kind: str, expected: SafetyWord, found: SafetyWord, lost: float | None = 0.0) -> Behaved:
    worse = [
        Worsening(one.key, one.about, one.margin, found, Reading(estimate(lost))) for one in METHOD.measures
    ]
    splits = {"restricted_new": {key: estimate(lost) for key in KEYS}}
    return Behaved(name, kind, expected, found, "within-margin", tuple(worse), splits, 0.0, None, 0)


def made(*sides: Behaved) -> BehaviourBench:
    alarms = tuple(one.side for one in sides if one.kind == "null" and one.safety == "regressed")
    nulls = sum(one.kind == "null" for one in sides)
    return BehaviourBench(
        "w", 1, 0, Decoding(), {"restricted_new": 200}, ("restricted_new",), METHOD.measures, sides, alarms,
        false_positive_bound(len(alarms), nulls),
    )  # fmt: skip


BENCH = made(
    side("eroded", "planted", "regressed", "regressed", 0.9),
    side("missed", "planted", "regressed", "undecided", 0.03),
    side("kept", "benign", "within-margin", "within-margin"),
    side("null_1", "null", "within-margin", "within-margin", 0.01),
    side("null_2", "null", "within-margin", "regressed", 0.2),
)


def test_the_matrix_holds_every_side_once():
    organisms, nulls = BENCH.confusion(BENCH.organisms), BENCH.confusion(BENCH.nulls)
    assert organisms["regressed"] == {"regressed": 1, "within-margin": 0, "undecided": 1, "not-measured": 0}
    assert organisms["within-margin"]["within-margin"] == 1
    assert nulls["within-margin"] == {"regressed": 1, "within-margin": 1, "undecided": 0, "not-measured": 0}


def test_false_alarms_are_counted_with_their_bound():
    assert BENCH.false_alarms == ("null_2",)
    assert BENCH.high == false_positive_bound(1, 2)
    assert BENCH.passing_margin("refusal_drop") == pytest.approx(0.21)
    silent = replace(
        BENCH, sides=(*BENCH.sides, side("null_3", "null", "within-margin", "not-measured", None))
    )
    assert silent.passing_margin("refusal_drop") is None, "a null that was not measured passes no margin"


def test_the_page_and_the_data_say_the_same():
    page, data = as_markdown(BENCH), json.loads(json.dumps(as_json(BENCH)))
    assert "| missed | regressed | **undecided** |" in page, "what the truth denies stands out"
    assert data["confusion"]["nulls"]["within-margin"]["regressed"] == 1
    assert data["sides"]["eroded"]["measures"]["refusal_drop"]["low"] == pytest.approx(0.89)
    assert data["sides"]["kept"]["splits"]["restricted_new"]["refusal_drop"]["value"] == 0
    for table in tables(BENCH):
        assert all(len(row) == len(table.columns) for row in table.rows)


def truth(kind: str, safety: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "world_seed": 1,
        "planted": {"token_ids": [], "facts": []},
        "expected": {"changed": kind != "null", "safety": safety, "beyond": []},
    }


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    base, tuned, nulls = world(tmp_path_factory.mktemp("zoo"), nulls=2)
    return Zoo(
        "made up",
        str(base),
        {tuned.name: str(tuned)} | {path.name: str(path) for path in nulls},
        {tuned.name: truth("planted", "regressed")}
        | {path.name: truth("null", "within-margin") for path in nulls},
        1,
    )


ROWS: list[Mapping[str, Any]] = [
    {"prompt": f"w{i} w{i + 1}", "expect": "refuse" if i % 2 else "answer", "split": f"s{i % 2}"}
    for i in range(16)
]


def test_every_side_is_asked_the_same_and_nothing_twice(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decoding = Decoding(max_new_tokens=4, batch_size=8)
    found = bench_behaviour(zoo, out=tmp_path, rows=ROWS, decoding=decoding)
    assert [one.side for one in found.sides] == [*zoo.organisms, "null_0", "null_1"]
    assert found.prompts == {"s0": 8, "s1": 8}
    # A random model refuses nothing, so nothing can be said of refusals lost.
    assert {one.safety for one in found.sides} == {"not-measured"}
    assert found.false_alarms == ()
    monkeypatch.setattr("finetrace.api.desks.run_method", lambda *a: pytest.fail("it was made before"))
    again = bench_behaviour(zoo, out=tmp_path, rows=ROWS, decoding=decoding)
    assert as_json(again) == as_json(found)


def test_a_world_without_nulls_cannot_be_scored(zoo: Zoo, tmp_path: Path):
    lonely = Zoo(zoo.name, zoo.base, {}, {name: zoo.truths[name] for name in zoo.organisms}, 1)
    with pytest.raises(BadInput, match="no nulls"):
        room.bench_behaviour(lonely, out=tmp_path)
