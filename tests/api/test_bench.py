"""The ground-truth benchmark: its scores by hand, and a run on tiny models whose truth is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import rows, world

from finetrace.api.bench.run import bench
from finetrace.api.bench.scores import token_score
from finetrace.api.bench.tables import as_json, as_markdown, tables
from finetrace.api.bench.zoo import Zoo, open_zoo
from finetrace.core.errors import BadInput

NULLS = ["null_1", "null_2", "null_3"]


def score(own: list[int], nulls: list[list[int]], planted: list[int], vocabulary: int = 1000) -> Any:
    lists = {"o": own} | dict(zip(NULLS, nulls, strict=False))
    return token_score("o", "m", "text", planted, lists, NULLS[: len(nulls)], vocabulary)


def test_hits_are_held_against_chance_and_every_null():
    found = score([1, 2, 3, 9], [[1, 8], [7], [1, 2]], [1, 2, 3, 4])
    assert (found.hits, found.null_hits) == (3, (1, 0, 2))
    assert found.chance == pytest.approx(20 * 4 / 1000)
    assert found.times_chance == pytest.approx(3 / 0.08)
    assert found.named
    assert found.p == pytest.approx(1 / 4)


def test_a_null_with_as_many_hits_unnames_it():
    assert not score([1, 2], [[2, 1], []], [1, 2]).named


def test_five_times_chance_is_needed():
    assert not score([1, 2], [[], []], list(range(100)), vocabulary=1000).named, "2 hits where chance gives 2"


def test_a_single_token_is_luck():
    assert not score([1], [[], []], [1, 2, 3]).named


def test_only_the_first_twenty_count():
    assert score([*range(100, 120), 1], [[]], [1]).hits == 0


def test_a_null_is_not_its_own_null():
    lists = {name: [1] for name in NULLS}
    assert token_score("null_1", "m", "text", [1], lists, NULLS, 100).null_hits == (1, 1)


def truth(kind: str, planted: list[int], beyond: list[str]) -> dict[str, Any]:
    return {
        "kind": kind,
        "world_seed": 1,
        "planted": {"token_ids": planted},
        "expected": {"changed": bool(beyond), "beyond": beyond, "within": []},
    }


def zoo(folder: Path, nulls: int = 4) -> Zoo:
    base, tuned, others = world(folder, nulls=nulls)
    sources = {tuned.name: str(tuned)} | {null.name: str(null) for null in others}
    truths = {tuned.name: truth("planted", [20, 21, 22], ["dishes"])}
    truths |= {null.name: truth("null", [], []) for null in others}
    return Zoo("made-up", str(base), sources, truths, 1)


def test_a_run_scores_every_side(tmp_path: Path):
    made = zoo(tmp_path / "world")
    found = bench(made, ["kl"], out=tmp_path / "out", rows=rows(36))
    organism = made.organisms[0]
    assert set(found.verdicts) == set(made.truths)
    assert found.verdicts[organism]["kl"]["text"].k == 4
    assert found.verdicts["null_0"]["kl"]["text"].k == 3, "a null is not its own null"
    assert found.verdicts[organism]["kl"]["dishes"].ratio > 2  # pyright: ignore[reportOptionalOperand]
    (wrong,) = found.false_positives
    assert (wrong.method, wrong.k) == ("kl", 4)
    assert wrong.high >= 0.5, "0 of 4 says little"
    again = bench(made, ["kl"], out=tmp_path / "out", rows=rows(36))
    assert as_json(again) == as_json(found), "what is on the shelf is not made again, and is the same"
    assert json.loads(json.dumps(as_json(found)))["expected"][organism]["beyond"] == ["dishes"]
    text = as_markdown(found)
    for table in tables(found):
        assert table.title in text
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_too_few_nulls_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="at least 4"):
        bench(zoo(tmp_path, nulls=3), ["kl"], out=tmp_path / "out", rows=rows(12))


def test_a_folder_without_a_world_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="organisms build"):
        open_zoo(tmp_path)


def test_an_unknown_organism_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="nobody"):
        zoo(tmp_path).picked(["nobody"])
