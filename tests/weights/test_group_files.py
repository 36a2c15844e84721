"""Groups in files: which weights and nothing else, for the owner alone, whole or absent, and nothing else is read."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from finetrace.core.errors import BadInput, DataError
from finetrace.weights.group_files import INDEX, load, save
from finetrace.weights.groups import Group

SHAPES = {"a": (3, 5), "b": (4, 2)}


def group(name: str = "safety_top", unit: Any = "entries", **places: list[int]) -> Group:
    return Group(name, unit, {m: torch.tensor(ids, dtype=torch.int64) for m, ids in places.items()})


def rewritten(folder: Path, name: str, text: str) -> None:
    """Changes a file as one who also mends its checksum would."""
    import hashlib

    (folder / name).write_text(text, encoding="utf-8")
    index = json.loads((folder / INDEX).read_text())
    for entry in index["groups"]:
        if entry["file"] == name:
            entry["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("compact", [False, True])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_was_saved_comes_back(
    compact: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("groups")
    entries = {m: sorted(data.draw(st.sets(st.integers(0, o * i - 1)))) for m, (o, i) in SHAPES.items()}
    rows = {m: sorted(data.draw(st.sets(st.integers(0, o - 1)))) for m, (o, _) in SHAPES.items()}
    made = [group("safety_top", "entries", **entries), group("random", "rows", **rows)]
    save(folder, made, {"n": 4}, shapes=SHAPES, compact=compact)
    found = load(folder)
    assert found.shapes == SHAPES
    assert found.meta == {"n": 4}
    for one in made:
        same = found.groups[one.name]
        assert same.unit == one.unit
        assert {m: ids.tolist() for m, ids in same.places.items()} == {
            m: ids.tolist() for m, ids in one.places.items()
        }


def test_small_groups_read_as_rows_and_columns(tmp_path: Path):
    save(tmp_path, [group(a=[1, 7])], shapes=SHAPES)
    text = (tmp_path / "safety_top.json").read_text()
    assert json.loads(text)["places"] == {"a": [[0, 1], [1, 2]]}
    assert "[1, 2]" in text


def test_files_are_for_the_owner_and_hold_whole_numbers_only(tmp_path: Path):
    for compact in (False, True):
        folder = tmp_path / str(compact)
        save(folder, [group(a=[1, 7], b=[0])], shapes=SHAPES, compact=compact)
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(
        t.is_floating_point() for t in load_file(tmp_path / "True" / "safety_top.safetensors").values()
    )
    assert "." not in json.dumps(json.loads((tmp_path / "False" / "safety_top.json").read_text()))


def test_many_places_are_compact(tmp_path: Path):
    n = 300_000
    save(tmp_path, [Group("safety_top", "entries", {"a": torch.arange(n)})], shapes={"a": (n, 1)})
    assert (tmp_path / "safety_top.safetensors").stat().st_size < 4.01 * n


def test_a_crash_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, [group(a=[1])], shapes=SHAPES)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetrace.weights.group_files.write_json", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, [group(a=[2])], shapes=SHAPES)
    with pytest.raises(DataError, match="not to the end"):
        load(tmp_path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "places",
    [
        "[[0, 5]]",
        "[[3, 0]]",
        "[[-1, 0]]",
        "[[0, 1.5]]",
        "[[true, 0]]",
        "[[0]]",
        "[[1, 0], [0, 1]]",
        "[[0, 1], [0, 1]]",
        '"x"',
        '[["0", 1]]',
        "[[0, 99999999999999999999]]",
    ],
)
def test_other_content_is_refused(places: str, tmp_path: Path):
    save(tmp_path, [group(a=[1])], shapes=SHAPES)
    rewritten(
        tmp_path,
        "safety_top.json",
        f'{{"name": "safety_top", "unit": "entries", "places": {{"a": {places}}}}}',
    )
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2), ("shapes", {"a": [3]}), ("shapes", {"a": [3, -5]}), ("shapes", {"a": [2, 2]}), ("shapes", {}),
        ("groups", [{"name": "../x"}]), ("groups", [7]), ("groups", {}), ("meta", []),
    ],
)  # fmt: skip
def test_another_index_is_refused(key: str, value: object, tmp_path: Path):
    save(tmp_path, [group(a=[1, 14])], shapes=SHAPES)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {key: value}))
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize(
    "field", [("file", "/etc/passwd"), ("unit", "columns"), ("places", 3), ("sha256", "0")]
)
def test_another_entry_is_refused(field: tuple[str, object], tmp_path: Path):
    save(tmp_path, [group(a=[1])], shapes=SHAPES)
    index = json.loads((tmp_path / INDEX).read_text())
    index["groups"][0][field[0]] = field[1]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError):
        load(tmp_path)


def test_another_tensor_file_is_refused(tmp_path: Path):
    from hashlib import sha256

    save(tmp_path, [group(a=[1])], shapes=SHAPES, compact=True)
    path = tmp_path / "safety_top.safetensors"
    whole = path.read_bytes()
    scores = {"a": torch.tensor([0.5])}
    for content in (
        whole[:-1],
        b"",
        scores,
        {"a": torch.tensor([[1]])},
        {"a": torch.tensor([15])},
        {"c": torch.tensor([0])},
    ):
        if isinstance(content, dict):
            save_file(content, path)
        else:
            path.write_bytes(content)
        index = json.loads((tmp_path / INDEX).read_text())
        index["groups"][0]["sha256"] = sha256(path.read_bytes()).hexdigest()
        (tmp_path / INDEX).write_text(json.dumps(index))
        with pytest.raises(DataError):
            load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"[]"])
def test_no_index_and_no_json_are_told(content: bytes, tmp_path: Path):
    with pytest.raises(DataError, match="never saved"):
        load(tmp_path)
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        group("../up", a=[1]),
        group("groups", a=[1]),
        group(a=[15]),
        group(a=[2, 1]),
        group(a=[-1]),
        group(c=[1]),
        group("x", "rows", a=[3]),
    ],
)
def test_what_could_not_be_read_is_not_written(wrong: Group, tmp_path: Path):
    with pytest.raises(BadInput):
        save(tmp_path, [wrong], shapes=SHAPES)
    assert list(tmp_path.iterdir()) == []
