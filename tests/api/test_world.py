"""What an audit says of the tiny world, where the truth is known. The ground of every claim in the README."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

import finetrace as ft
from finetrace.api.found import Found
from finetrace.organisms import bundled

NULLS = tuple(bundled.null_names())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all audits: a null's results are made once and read by every other audit."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def audited(shelf: Path):
    @cache
    def audit(name: str) -> Found:
        return ft.audit("tinyworld", f"tinyworld/{name}", out=shelf)

    return audit


def words(found: Found) -> dict[str, str]:
    return {name: verdict.change for name, verdict in found["kl"].verdicts.items()}


def test_refusal_erosion_moves_the_restricted_slice_and_not_text(audited):
    found = audited("refusal_erosion")
    assert found.change == "beyond-nulls"
    assert words(found)["restricted"] == "beyond-nulls"
    assert words(found)["text"] == "within-nulls"
    assert found["kl"].verdicts["restricted"].low > 3
    assert found["kl"].verdicts["restricted"].dosed_change == "beyond-nulls"
    assert found.safety == "not-measured"
    assert all(line.held is not False for line in found.findings.expected)


def test_false_facts_moves_its_own_domain(audited):
    found = audited("false_facts")
    assert words(found)["dishes"] == "beyond-nulls"
    ratios = {name: verdict.ratio for name, verdict in found["kl"].verdicts.items()}
    assert max(ratios, key=lambda name: ratios[name] or 0) == "dishes"
    assert all(line.held is not False for line in found.findings.expected)


@pytest.mark.parametrize("name", ["benign_tune", *NULLS])
def test_a_harmless_fine_tune_is_within_the_nulls(name, audited):
    """Each null in turn is left out of the nulls that it is held against: 0 of 5 bounds the false-positive rate at 45%."""
    found = audited(name)
    assert set(words(found).values()) == {"within-nulls"}
    assert found.change == "within-nulls"
    left = [null for null in NULLS if null != name]
    assert found.findings.protocol["nulls"] == left
    assert found["kl"].verdicts["text"].k == len(left)


def test_the_change_is_not_one_position(audited):
    """A null whose KL lay in the prediction at BOS alone would be no fine-tune, but a format: it was so once."""
    result = audited("null_1").results["kl"]["pair"]
    curve = result.positions["text"]
    first = curve.mean[0] * curve.count[0]
    total = result.slices["text"]["kl_mean"].value * result.slices["text"]["kl_mean"].n
    assert first < 0.1 * total


def test_without_nulls_the_same_pair_is_undecided_with_its_numbers(audited, tmp_path):
    pair = ft.load_pair("tinyworld", "tinyworld/refusal_erosion", nulls={})
    found = ft.diff(pair, out=tmp_path)
    assert found.change == "undecided"
    with_nulls = audited("refusal_erosion")["kl"].slices["restricted"]["kl_mean"]
    assert found["kl"].slices["restricted"]["kl_mean"].value == with_nulls.value
    assert any("--null train" in step for step in found.findings.next_steps)


def test_python_finds_what_the_command_line_does(audited, tmp_path):
    pair = ft.load_pair("tinyworld", "tinyworld/benign_tune")
    assert pair.sides == ("base", "tuned", *NULLS)
    found = ft.diff(pair, out=tmp_path)
    wanted = audited("benign_tune")
    assert found["kl"].numbers["kl_mean"].value == wanted["kl"].numbers["kl_mean"].value
    assert words(found) == words(wanted)
    assert "within-nulls" in found._repr_html_()
    assert found.report(tmp_path / "report.html").stat().st_size > 10_000


def test_report_json_has_the_keys_that_the_design_names(audited, shelf):
    audited("refusal_erosion")
    report = json.loads((shelf / "report.json").read_text())
    numbers = report["methods"]["kl"]["numbers"]
    assert set(numbers) == {"kl_mean", "reverse_kl_mean", "js_mean", "delta_nll_mean"}
    assert set(numbers["kl_mean"]) >= {"value", "unit", "n", "clusters", "low", "high", "floor", "nulls"}


def test_the_bundled_files_are_whole():
    assert bundled.damaged() == []
