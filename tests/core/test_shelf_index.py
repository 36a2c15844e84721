"""The index is a cache: whatever is done to it, or to the runs, a listing is what a fresh look at the files gives."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core import shelf_index
from finetrace.core.estimate import Estimate
from finetrace.core.shelf import Address, Figures, Shelf, figures
from finetrace.core.shelf_index import INDEX, PLACE, entries

PLACES = [
    ("b", "one", "default", "kl", "k1"),
    ("b", "one", "mix", "kl", "k2"),
    ("c", "two", "default", "kl", "k3"),
]
OPERATIONS = (
    "save", "drop", "no_manifest", "no_result", "half_manifest", "foreign", "other_result", "cut_index", "noise", "no_index",
    "old_index", "list",
)  # fmt: skip


def write(folder: Path, place: tuple[str, ...], serial: int) -> None:
    """A run whose files are of another size each time: what a coarse clock cannot tell apart is another test's matter."""
    folder.mkdir(parents=True, exist_ok=True)
    one = {
        "value": float(serial),
        "unit": "nats" + "x" * serial,
        "n": 3,
        "clusters": 2,
        "low": None,
        "high": None,
    }
    body = json.dumps({"numbers": {"kl_mean": {**one, "replicates": None}}, "slices": {}}, indent=1).encode()
    (folder / "result.json").write_bytes(body)
    manifest = {
        "contrast": "pair",
        "created": "2026-01-01" + "x" * serial,
        "address": dict(zip(PLACE, place, strict=True)),
        "files": {"result.json": hashlib.sha256(body).hexdigest()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def looked(root: Path) -> list[tuple[str, Any, Any]]:
    """What is there, found without an index and without our code."""
    rows = []
    for path in sorted(root.glob("*/*/*/*/*/manifest.json")):
        try:
            told = json.loads(path.read_text())
        except ValueError:
            continue
        if "address" in told and (path.parent / "result.json").exists():
            body = (path.parent / "result.json").read_bytes()
            whole = hashlib.sha256(body).hexdigest() == told["files"]["result.json"]
            value = json.loads(body)["numbers"]["kl_mean"]["value"] if whole else None
            rows.append((str(path.parent.relative_to(root)), told, value))
    return rows


def listed(root: Path) -> list[tuple[str, Any, Any]]:
    return [
        (one.folder, one.manifest, one.numbers["kl_mean"].value if one.numbers else None)
        for one in entries(root, lambda entry: True)
    ]


def act(root: Path, operation: str, place: tuple[str, ...], serial: int, kept: list[bytes]) -> None:
    folder, index = root.joinpath(*place), root / INDEX
    if operation == "save":
        write(folder, place, serial)
    elif operation == "drop":
        shutil.rmtree(folder, ignore_errors=True)
    elif operation in ("no_manifest", "no_result"):
        (folder / f"{operation.removeprefix('no_')}.json").unlink(missing_ok=True)
    elif operation == "half_manifest" and (folder / "manifest.json").exists():
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text[: len(text) // 2])
    elif operation == "foreign":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"mine": "x" * serial}))
    elif operation == "other_result" and (folder / "result.json").exists():
        text = (folder / "result.json").read_text()
        (folder / "result.json").unlink()
        (folder / "result.json").write_text(text + " " * serial)
    elif operation == "old_index":
        if kept:
            index.write_bytes(kept[0])
        if index.exists():
            kept.append(index.read_bytes())
    elif index.exists() and operation == "cut_index":
        index.write_bytes(index.read_bytes()[: index.stat().st_size * 2 // 3])
    elif index.exists() and operation == "noise":
        data = bytearray(index.read_bytes())
        data[serial * 37 % len(data)] ^= 1
        index.write_bytes(bytes(data))
    elif operation == "no_index":
        index.unlink(missing_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(PLACES), st.booleans()), max_size=14))
def test_a_listing_is_what_a_fresh_look_gives(steps: list[tuple[str, tuple[str, ...], bool]]):
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf_index, "_SETTLED", -60.0)  # nothing is too young to be kept
        root, kept = Path(name), list[bytes]()
        for serial, (operation, place, look) in enumerate([("save", p, False) for p in PLACES] + steps, 1):
            act(root, operation, place, serial, kept)
            if look:
                assert listed(root) == looked(root)
        assert listed(root) == looked(root)
        assert listed(root) == looked(root)


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shelf_index, "_SETTLED", -60.0)
    for place in PLACES:
        write(tmp_path.joinpath(*place), place, 1)
    first = listed(tmp_path)
    written = (tmp_path / INDEX).stat().st_mtime_ns
    monkeypatch.setattr(shelf_index, "read_manifest", lambda folder: pytest.fail(f"{folder} was read again"))
    assert listed(tmp_path) == first
    assert len(first) == 3
    assert (tmp_path / INDEX).stat().st_mtime_ns == written


def test_a_run_that_is_too_young_to_be_sure_of_is_read_each_time(tmp_path: Path):
    """A clock may be too coarse to show that a file of the same size was written twice."""
    write(tmp_path.joinpath(*PLACES[0]), PLACES[0], 1)
    manifest = tmp_path.joinpath(*PLACES[0]) / "manifest.json"
    assert listed(tmp_path) == looked(tmp_path)
    assert not (tmp_path / INDEX).exists()
    manifest.write_text(manifest.read_text().replace("2026-01-01", "2026-02-02"))
    assert listed(tmp_path)[0][1]["created"].startswith("2026-02-02")


def test_numbers_are_read_for_those_that_are_asked_for(tmp_path: Path):
    for place in PLACES:
        write(tmp_path.joinpath(*place), place, 2)
    found = Shelf(tmp_path).entries(lambda entry: entry.tuned == "two")
    assert [one.numbers for one in found[:2]] == [None, None]
    assert found[2].numbers == {"kl_mean": Estimate(2.0, "natsxx", 3, 2)}


def test_a_shelf_that_cannot_be_written_to_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(shelf_index, "_SETTLED", -60.0)
    monkeypatch.setattr(shelf_index, "write_bytes", refuse)
    write(tmp_path.joinpath(*PLACES[0]), PLACES[0], 1)
    assert listed(tmp_path) == looked(tmp_path)
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize("name", ["../../secret.json", "/etc/passwd", "a/b.json"])
def test_a_manifest_that_names_files_elsewhere_is_no_run(tmp_path: Path, name: str):
    folder = tmp_path.joinpath(*PLACES[0])
    write(folder, PLACES[0], 1)
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**told, "files": {name: "0"}}))
    assert entries(tmp_path) == []


def test_a_shelf_that_is_not_there_has_no_runs(tmp_path: Path):
    assert entries(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_figures_are_a_results_numbers_without_the_rest(tmp_path: Path):
    import numpy as np

    one = Estimate(1.5, "nats", 10, 3, 1.0, 2.0, np.array([1.0, 2.0]))
    result = Figures({"a": one}, {"text": {"a": one}})
    folder = Shelf(tmp_path).save(Address("b", "t", "default", "kl", "k"), result, {})
    found = figures(folder)
    assert found.slices["text"]["a"].value == 1.5
    np.testing.assert_array_equal(found.numbers["a"].replicates, one.replicates)
