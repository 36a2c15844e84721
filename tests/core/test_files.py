"""A file is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetrace.core.files import whole_file, write_json, write_text


def test_replaces_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"], "no temporary file stays"


def write_half(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half way")


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_mode_and_strict_json(tmp_path):
    write_text(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not (tmp_path / "a.json").exists()
