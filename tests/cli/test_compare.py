"""`finetrace compare` and `finetrace list runs`, from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.api.compare.shelves import PROTOCOL, put, with_nulls
from tests.cli.shell import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = with_nulls(tmp_path_factory.mktemp("results"))
    put(root, "cake", 0.5)
    put(root, "cake", 0.2, variant="mix1-0p5", created="2020-01-01T00:00:00+00:00")
    put(root, "fda", None, method="behaviour", numbers={"hedged_base": 0.1, "refusal_drop": 0.6})
    put(root, "fda", 0.4, protocol={**PROTOCOL, "seed": 1}, command="finetrace run organism=fda seed=1")
    return root


def test_compare_prints_the_matrix_and_writes_the_page(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    out = tmp_path / "out"
    assert run(monkeypatch, "compare", "seed=0", "--in", results, "--method", "kl", "--out", out) == 0
    said = capsys.readouterr().out
    assert "cake  0.500 [0.450, 0.550]" in said
    assert "beyond-nulls" in said
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.parquet"]
    assert json.loads((out / "compare.json").read_text())["command"].startswith("finetrace compare seed=0")


def test_runs_that_were_not_made_alike_end_in_an_error_that_says_all(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    words = ("compare", "--in", results, "--method", "kl", "--out", tmp_path / "out")
    assert run(monkeypatch, *words) == 2
    assert "the seed differs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, *words, "--anyway") == 0
    assert "the seed differs" in capsys.readouterr().out


def listed(
    monkeypatch: pytest.MonkeyPatch, capsys, results: Path, *words: object
) -> list[tuple[str, str, str]]:
    assert run(monkeypatch, "list", "runs", "--in", results, "--json", *words) == 0
    return [(one["organism"], one["variant"], one["method"]) for one in json.loads(capsys.readouterr().out)]


CAKE, MIX = ("cake", "default", "kl"), ("cake", "mix1-0p5", "kl")
FDA, SAFE = ("fda", "default", "kl"), ("fda", "default", "behaviour")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), [CAKE, MIX, SAFE, FDA]),
        (("--organism", "ca*"), [CAKE, MIX]),
        (("--organism", "fda,nothing"), [SAFE, FDA]),
        (("--variant", "mix*"), [MIX]),
        (("--method", "kl", "--organism", "fda"), [FDA]),
        (("--base", "small"), [CAKE, MIX, SAFE, FDA]),
        (("--base", "large"), []),
        (("--since", "2026-01-01"), [CAKE, SAFE, FDA]),
        (("--match", "seed=1"), [FDA]),
        (("--contrast", "null:null_1"), [("null_1", "default", "kl")]),
    ],
)
def test_filters_narrow_the_listing(
    words: tuple[object, ...], found: list[object], results: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    assert listed(monkeypatch, capsys, results, *words) == found


def test_nulls_are_folded_unless_all_is_asked_for(results: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert len(listed(monkeypatch, capsys, results, "--all")) == 8
    assert run(monkeypatch, "list", "runs", "--in", results) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("4 of 8 runs")
    assert "4 of nulls, doses and the noise floor are folded" in lines[-1]
    assert "kl_mean 0.500 nats/token [0.450, 0.550]" in lines[1]
    assert "refusal_drop 0.600" in lines[3]  # a method without a primary number: its first measure


def test_an_export_has_a_row_for_every_run_number_and_slice(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "runs.parquet"
    assert run(monkeypatch, "list", "runs", "--in", results, "--export", path) == 0
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 3 * (3 * 1 + 2)  # over all slices and on two; kl has one number, behaviour two
    (cake,) = [
        row
        for row in rows
        if row["organism"] == "cake" and row["variant"] == "default" and row["slice"] == "chat"
    ]
    assert (cake["number"], cake["value"], cake["unit"], cake["n"], cake["clusters"]) == (
        "kl_mean",
        1.0,
        "nats/token",
        900,
        40,
    )
    assert cake["low"] == pytest.approx(0.9)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.parquet"]


@pytest.mark.parametrize(
    "words", [("organisms", "--since", "3d"), ("runs", "--since", "3x"), ("methods", "--all")]
)
def test_options_that_say_nothing_here_are_errors(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    assert run(monkeypatch, "list", *words) == 2


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "list", "runs", "--in", tmp_path) == 0
    assert "There are no runs" in capsys.readouterr().out
