"""Checkpoints by hub id: found in the client's cache, pinned to a commit, and one clear line where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.hub import Hub, fake_hub

from finetrace.models import resolve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return fake_hub(tmp_path, monkeypatch)


def checkpoint(folder: Path, mark: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(f'{{"mark": "{mark}"}}')
    return folder


def test_subfolders_and_revisions_of_one_repository(hub: Hub, tmp_path: Path) -> None:
    first = hub.add("org/repo", checkpoint(tmp_path / "a", "a"), subfolder="deep/er")
    second = hub.add("org/repo", checkpoint(tmp_path / "b", "b"), subfolder="other")
    tagged = hub.add("org/repo", checkpoint(tmp_path / "c", "c"), revision="v1")
    assert len({first, second, tagged}) == 3
    found = resolve("org/repo/deep/er")
    assert (found.folder / "config.json").read_text() == '{"mark": "a"}'
    assert found.revision == second
    assert (resolve("org/repo/other").folder / "config.json").read_text() == '{"mark": "b"}'
    assert resolve("org/repo/deep/er", revision=first).revision == first
    assert resolve("org/repo", revision="v1").revision == tagged
