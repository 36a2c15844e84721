"""A hub that is only a folder: huggingface_hub's own cache, filled as if each repository had been fetched before.

    hub = fake_hub(tmp_path, monkeypatch)
    commit = hub.add("org/base", save_base(tmp_path))
    hub.add("org/adapters", save_lora(tmp_path, base), subfolder="step-100/final")
    open_pair("org/base", "org/adapters/step-100/final")

Nothing can be fetched beyond it: the client is in offline mode.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Hub:
    """folder: the cache. Repositories are under the names of the client's own layout."""

    folder: Path

    def add(self, repo_id: str, folder: Path, *, subfolder: str | None = None, revision: str = "main") -> str:
        """Commits a copy of `folder` to a revision (a branch or tag), beside what that revision holds; its commit.

        Files of the same name take the place of those before; older commits stay.
        """
        files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        prefix = f"{subfolder}/" if subfolder else ""
        return self._commit(
            "models", repo_id, {prefix + name: path for name, path in files.items()}, revision
        )

    def add_data(self, repo_id: str, files: Mapping[str, str | bytes], *, revision: str = "main") -> str:
        """Commits a data set's files, name -> contents, to a revision; its commit."""
        return self._commit("datasets", repo_id, dict(files), revision)

    def snapshot(self, repo_id: str, commit: str, kind: str = "models") -> Path:
        """Where a commit's files lie."""
        return self._repo(kind, repo_id) / "snapshots" / commit

    def _repo(self, kind: str, repo_id: str) -> Path:
        return self.folder / "--".join([kind, *repo_id.split("/")])

    def _commit(self, kind: str, repo_id: str, files: Mapping[str, Path | str | bytes], revision: str) -> str:
        repo = self._repo(kind, repo_id)
        ref = repo / "refs" / revision
        held: dict[str, Path | str | bytes] = {}
        if ref.is_file():
            before = repo / "snapshots" / ref.read_text(encoding="utf-8")
            held = {path.relative_to(before).as_posix(): path for path in _files(before)}
        held |= files
        contents = {name: _read(found) for name, found in sorted(held.items())}
        sha = hashlib.sha1(repo_id.encode(), usedforsecurity=False)
        for name, content in contents.items():
            sha.update(f"{name}:{len(content)}:".encode() + content)
        commit = sha.hexdigest()
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            self._link(repo, snapshot / name, content)
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")
        return commit

    def _link(self, repo: Path, place: Path, content: bytes) -> None:
        """One file as the client keeps it: a blob by its hash, and a link to it (a copy where there are no links)."""
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.write_bytes(content)
        if place.exists():
            return
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            shutil.copyfile(blob, place)


def fake_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub under `root`, in the place of the user's cache, for this process and those that it starts."""
    from huggingface_hub import constants

    home = root / "huggingface"
    folder = home / "hub"
    folder.mkdir(parents=True, exist_ok=True)
    switches = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for name, value in {"HF_HOME": str(home), "HF_HUB_CACHE": str(folder), **switches}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The client has read the environment already, when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(found: Path | str | bytes) -> bytes:
    if isinstance(found, Path):
        return found.read_bytes()
    return found.encode() if isinstance(found, str) else found
