"""`finetrace clean` says what it would remove, and removes when told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.shell import run
from tests.core.test_shelf_clean import journal
from tests.core.test_shelf_index import PLACES, write


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for place in PLACES:
        folder = tmp_path.joinpath("runs", *place)
        write(folder, place, 1)
        told = json.loads((folder / "manifest.json").read_text())
        told |= {"version": 0 if place[-1] == "k2" else 1, "created": "2020-01-01T00:00:00+00:00"}
        (folder / "manifest.json").write_text(json.dumps(told))
    journal(tmp_path / "runs")
    return tmp_path


def keys(results: Path) -> list[str]:
    return sorted(path.parent.name for path in results.rglob("manifest.json"))


def test_nothing_goes_unless_it_was_said_what(results: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "clean", "--in", results) == 0
    said = capsys.readouterr().out
    assert "whole runs               3" in said
    assert "unfinished               1" in said
    assert run(monkeypatch, "clean", "--in", results, "--yes") == 0
    assert keys(results) == ["k1", "k2", "k3"]


def test_without_yes_it_only_says_what_would_go(results: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "clean", "--in", results, "--scratch", "--method", "kl") == 0
    said = capsys.readouterr().out
    assert "3 run, 1 journal" in said
    assert "Nothing was removed: add --yes." in said
    assert keys(results) == ["k1", "k2", "k3"]
    assert (results / "runs" / ".scratch").exists()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("--stale",), ["k1", "k3"]),
        (("--older-than", 30), []),
        (("--older-than", 100_000), ["k1", "k2", "k3"]),
        (("--method", "nothing"), ["k1", "k2", "k3"]),
        (("--run", "b/one/mix/kl/k2"), ["k1", "k3"]),
        (("--run", "b/one/mix/kl/k2", "--run", "c/two/default/kl/k3"), ["k1"]),
        (("--stale", "--run", "b/one/default/kl/k1"), ["k1", "k2", "k3"]),
        (("--scratch",), ["k1", "k2", "k3"]),
    ],
)
def test_what_was_chosen_goes(
    words: tuple[object, ...], left: list[str], results: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run(monkeypatch, "clean", "--in", results, *words, "--yes") == 0
    assert keys(results) == left
    assert (results / "runs" / ".scratch").exists() == ("--scratch" not in words)


def test_a_run_may_be_named_by_the_path_that_a_listing_of_the_shell_gives(
    results: Path, monkeypatch: pytest.MonkeyPatch
):
    assert (
        run(monkeypatch, "clean", "--in", results, "--run", results.joinpath("runs", *PLACES[0]), "--yes")
        == 0
    )
    assert keys(results) == ["k2", "k3"]


@pytest.mark.parametrize("name", ["k1", "/etc", "../..", "nothing_like_it"])
def test_a_run_that_is_not_on_the_shelf_is_an_error(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    assert run(monkeypatch, "clean", "--in", results, "--run", name, "--yes") == 2
    assert name in capsys.readouterr().err
    assert keys(results) == ["k1", "k2", "k3"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(monkeypatch, "clean", "--in", tmp_path / "nowhere") == 2


def test_a_journal_of_the_last_hour_goes_only_by_force(results: Path, monkeypatch: pytest.MonkeyPatch):
    young = results / "runs" / ".scratch" / ("a" * 20)
    young.mkdir()
    assert run(monkeypatch, "clean", "--in", results, "--scratch", "--yes") == 0
    assert [path.name for path in young.parent.iterdir()] == [young.name]
    assert run(monkeypatch, "clean", "--in", results, "--scratch", "--yes", "--force") == 0
    assert not young.parent.exists()
