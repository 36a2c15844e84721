"""Nothing goes but what is ours, and nothing outside the shelf."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.core.test_shelf_index import PLACES, write

from finetrace.core import shelf_clean
from finetrace.core.errors import BadInput
from finetrace.core.shelf_index import entries

KEY = "0123456789abcdef0123"
OLD = time.time() - 7200


def shelf(folder: Path) -> Path:
    for place in PLACES:
        write(folder.joinpath(*place), place, 1)
    return folder


def journal(root: Path, key: str = KEY, when: float = OLD) -> Path:
    path = root / ".scratch" / key / "desk" / "00000.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 10)
    for one in (path, path.parent, path.parent.parent):
        os.utime(one, (when, when))
    return root / ".scratch" / key


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_run_goes_with_its_folders_and_no_other_run(tmp_path: Path):
    root = shelf(tmp_path)
    found = shelf_clean.runs(root, lambda entry: entry.tuned == "one" and entry.variant == "mix")
    assert [one.path for one in found] == [root.joinpath(*PLACES[1])]
    assert found[0].size == sum(path.stat().st_size for path in found[0].path.iterdir())
    assert shelf_clean.remove(root, found) == []
    assert not (root / "b" / "one" / "mix").exists()
    assert [entry.key for entry in entries(root)] == ["k1", "k3"]


def test_a_removal_that_is_killed_leaves_no_run_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, unlink = shelf(tmp_path), Path.unlink
    gone: list[str] = []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if gone:
            raise KeyboardInterrupt
        gone.append(path.name)
        unlink(path, missing_ok=missing_ok)

    found = shelf_clean.runs(root, lambda entry: entry.key == "k1")
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        shelf_clean.remove(root, found)
    monkeypatch.undo()
    assert gone == ["manifest.json"]
    assert [entry.key for entry in entries(root)] == ["k2", "k3"]
    half = [one for one in shelf_clean.unfinished(root) if one.kind == "half"]
    assert [one.path for one in half] == [root.joinpath(*PLACES[0])]
    assert half[0].running  # a writer may be about to write its manifest


def test_files_that_are_not_of_a_run_stay(tmp_path: Path):
    root = shelf(tmp_path)
    folder = root.joinpath(*PLACES[0])
    (folder / "notes.txt").write_text("mine")
    left = shelf_clean.remove(root, shelf_clean.runs(root, lambda entry: entry.key == "k1"))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert "notes.txt" in left[0]
    assert shelf_clean.unfinished(root) == []  # with a stranger's file in it, it is not ours to take


@pytest.mark.parametrize("level", range(1, 6))
def test_what_is_reached_by_a_link_is_never_removed(tmp_path: Path, level: int):
    root, outside = tmp_path / "shelf", shelf(tmp_path / "outside")
    inner = root.joinpath(*PLACES[0][: level - 1])
    inner.mkdir(parents=True)
    (inner / PLACES[0][level - 1]).symlink_to(outside.joinpath(*PLACES[0][:level]), target_is_directory=True)
    before = everything(outside)
    found = shelf_clean.runs(root, lambda entry: True)
    assert found
    assert all(one.elsewhere for one in found)
    with pytest.raises(BadInput, match="not inside the shelf"):
        shelf_clean.remove(root, found)
    assert everything(outside) == before


def test_a_linked_journal_or_store_is_not_followed(tmp_path: Path):
    root, outside = shelf(tmp_path / "shelf"), tmp_path / "outside"
    journal(outside)
    (root / ".scratch").mkdir()
    (root / ".scratch" / KEY).symlink_to(outside / ".scratch" / KEY, target_is_directory=True)
    (root / ".answers").symlink_to(outside, target_is_directory=True)
    (outside / f"{KEY}.json").write_text("{}")
    before = everything(outside)
    assert shelf_clean.unfinished(root) == []
    assert all(one.elsewhere for one in shelf_clean.kept(root))
    assert everything(outside) == before


def test_a_journal_of_the_last_hour_may_be_of_a_run_that_goes_on(tmp_path: Path):
    root = shelf(tmp_path)
    journal(root)
    journal(root, "f" * 20, time.time())
    ages = {one.path.name: one.running for one in shelf_clean.unfinished(root)}
    assert ages == {KEY: False, "f" * 20: True}
    shelf_clean.remove(root, [one for one in shelf_clean.unfinished(root) if not one.running])
    assert [path.name for path in (root / ".scratch").iterdir()] == ["f" * 20]


def test_folders_that_are_not_ours_are_not_taken_for_journals(tmp_path: Path):
    (tmp_path / ".scratch" / "my thesis").mkdir(parents=True)
    (tmp_path / ".answers").mkdir()
    (tmp_path / ".answers" / "exam.json").write_text("{}")
    (tmp_path / ".judges").mkdir()
    (tmp_path / ".judges" / f"{KEY}.json").write_text("paid for")
    deep = tmp_path / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    (deep / "result.json").write_text("{}")
    (deep / "thesis.tex").write_text("mine")
    (deep.parent / "f").mkdir()
    (deep.parent / "f" / "manifest.json").write_text(json.dumps({"name": "an extension of a browser"}))
    (deep.parent / "f" / "code.js").write_text("1")
    assert shelf_clean.unfinished(tmp_path) + shelf_clean.kept(tmp_path) == []
    assert shelf_clean.runs(tmp_path, lambda entry: True) == []


def test_answers_and_doses_go_when_they_are_asked_for(tmp_path: Path):
    for folder in (".answers", ".dose"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{KEY}.json").write_text("{}")
    found = shelf_clean.kept(tmp_path)
    assert [one.what for one in found] == ["answers", "a dose"]
    shelf_clean.remove(tmp_path, found)
    assert list(tmp_path.iterdir()) == []
