"""What `weight_spectrum` says of the tiny world: nulls are like nulls, one layer is one layer, merged is merged."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import finetrace as ft
from finetrace.api.bench.run import Bench, bench
from finetrace.api.bench.tables import as_markdown
from finetrace.api.bench.zoo import open_zoo
from finetrace.organisms import bundled

NAME = "weight_spectrum"
ROWS = [{"text": "The harbour froze twice that winter.", "slice": "text"}]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(open_zoo(), [NAME], out=tmp_path_factory.mktemp("bench"), rows=ROWS)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("audits")

    @cache
    def of(organism: str) -> Any:
        pair = ft.load_pair("tinyworld", f"tinyworld/{organism}", nulls={})
        return ft.diff(pair, ROWS, methods=[NAME], out=folder, dose=False).results[NAME]["pair"]

    return of


def test_nulls_held_against_one_another_are_within(measured: Bench):
    (found,) = measured.false_positives
    assert found.k == len(bundled.null_names())
    assert found.found == ()


def test_the_bench_shows_it_on_its_own_slice(measured: Bench):
    assert all(set(found[NAME]) == {"weights"} for found in measured.verdicts.values())
    assert "| organism | planted on | weights |" in as_markdown(measured)


def test_an_adapter_on_one_layer_is_found_there(result: Any):
    found = result("one_layer")
    planted = bundled.truth("one_layer")["recipe"]["layers"]
    assert list(np.flatnonzero(found.grid_square.sum(0))) == planted
    assert found.numbers["top_layer_share"].value == 1.0
    assert set(found.modules.data["layer"]) == set(planted)


def test_a_merged_adapter_is_told_from_a_full_tune(result: Any):
    merged, full = result("merged").ranks, result("full_tune").ranks
    assert merged.merged
    assert merged.rank == bundled.truth("merged")["recipe"]["r"]
    assert merged.low == merged.modules == 42
    assert not full.merged
    assert full.low < full.modules / 2


def test_the_merged_adapter_has_the_figures_of_the_adapter_itself(result: Any):
    merged, adapter = result("merged"), result("refusal_erosion")
    for key, number in adapter.numbers.items():
        assert merged.numbers[key].value == pytest.approx(number.value, rel=5e-3), key


@pytest.mark.parametrize("organism", ["refusal_erosion", "one_layer", "full_tune", "null_1", "null_2"])
def test_training_is_not_taken_for_a_direction_taken_out(organism: str, result: Any):
    seen = result(organism).removed
    assert not seen.flagged
    assert max(seen.explained, seen.own) < 0.1
