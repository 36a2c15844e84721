"""What can be removed from a shelf, and how: only what is ours, only inside it, the manifest first.

A run loses its manifest before anything else, so one that a killed removal leaves behind looks unfinished, never whole.
Files that are not of a run stay where they are, and with them their folder.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetrace.core.errors import BadInput
from finetrace.core.shelf_index import MANIFEST, RESULT, Entry, entries, folders, read_manifest

SCRATCH, ANSWERS, DOSES = ".scratch", ".answers", ".dose"
# Seconds since a journal was last touched: a younger one may be of a process that runs.
RUNNING = 3600.0
_KEY = re.compile(r"^[0-9a-f]{20}$")
_FILES = {MANIFEST, RESULT, "arrays.safetensors", "tables.parquet"}
# What a writer that was killed leaves: `.result.json.ab12cd.part`.
_PART = re.compile(r"^\.(?:manifest\.json|result\.json|arrays\.safetensors|tables\.parquet)\..+\.part$")


@dataclass(frozen=True)
class Removable:
    """Something that can go. kind: "run", "journal" (unfinished), "half" (a run without manifest) or "kept" (answers and
    doses, which are made again where they are needed). size: bytes. age: seconds since it was last touched. files: those
    that go, where only some of a folder are ours. elsewhere: a link leads out of the shelf to it, so that it never goes."""

    path: Path
    kind: str
    what: str
    size: int
    age: float
    files: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def running(self) -> bool:
        """Whether some process may still be at it."""
        return self.kind in ("journal", "half") and self.age < RUNNING


def runs(root: Path, wanted: Callable[[Entry], bool]) -> list[Removable]:
    """Whole runs that are `wanted`."""
    found = []
    for entry in entries(root):
        if wanted(entry):
            files = (MANIFEST, *entry.manifest["files"])
            found.append(_removable(root, root / entry.folder, "run", _name(entry), files))
    return found


def _name(entry: Entry) -> str:
    return f"{entry.tuned} {entry.variant} {entry.method} {entry.contrast}"


def unfinished(root: Path) -> list[Removable]:
    """Journals of runs that are not done, and runs that were killed between their first file and their manifest."""
    found = []
    for path in _children(root / SCRATCH):
        if _KEY.match(path.name) and path.is_dir() and not path.is_symlink():
            found.append(_removable(root, path, "journal", "an unfinished run"))
    for folder in folders(root):
        if (half := _half(root, root / folder)) is not None:
            found.append(half)
    return found


def _half(root: Path, path: Path) -> Removable | None:
    with suppress(OSError):
        if read_manifest(path) is not None:
            return None
    names = [one.name for one in _children(path)]
    ours = tuple(name for name in names if name in _FILES or _PART.match(name))
    if not ours or len(ours) < len(names):
        return None
    return _removable(root, path, "half", "a run without a manifest", ours)


def kept(root: Path) -> list[Removable]:
    """Answers and doses beside the runs. What judges said is never among them: it was paid for."""
    return [
        _removable(root, path, "kept", what)
        for folder, what in ((ANSWERS, "answers"), (DOSES, "a dose"))
        for path in _children(root / folder)
        if _KEY.match(path.stem) and path.suffix == ".json" and path.is_file() and not path.is_symlink()
    ]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _removable(root: Path, path: Path, kind: str, what: str, files: tuple[str, ...] = ()) -> Removable:
    size, touched = 0, 0.0
    for one in _walk(path, files):
        with suppress(OSError):
            seen = one.lstat()
            size, touched = size + seen.st_size, max(touched, seen.st_mtime)
    age = max(0.0, time.time() - touched)
    return Removable(path, kind, what, size, age, files, elsewhere=not _inside(root, path))


def _inside(root: Path, path: Path) -> bool:
    """Whether `path` is below `root`, with no link on the way."""
    if not path.is_relative_to(root):
        return False
    return path.resolve() == root.resolve() / path.relative_to(root)


def _walk(path: Path, files: tuple[str, ...]) -> Iterator[Path]:
    if files:
        yield from (path / name for name in files)
        return
    yield path
    for folder, names, inside in os.walk(path):
        yield from (Path(folder) / name for name in (*names, *inside))


def remove(root: Path, found: Sequence[Removable]) -> list[str]:
    """Removes them; returns what stayed behind, and why. BadInput at the first that is not inside the shelf."""
    left = []
    for one in found:
        if not _inside(root, one.path):
            raise BadInput(
                f"{one.path} is not inside the shelf {root}: it is not removed, nor what was to follow."
            )
        if one.files:
            _unlink(one.path, one.files)
            rest = _children(one.path)
            if rest:
                left.append(f"{one.path}: {', '.join(path.name for path in rest)} (not of a run)")
        elif one.path.is_dir():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)
        _prune(root, one.path)
    return left


def _unlink(folder: Path, files: tuple[str, ...]) -> None:
    """The manifest, then the others, then what killed writers left."""
    parts = [path.name for path in _children(folder) if _PART.match(path.name)]
    for name in sorted({*files, *parts}, key=lambda name: name != MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _prune(root: Path, path: Path) -> None:
    """Removes folders that became empty, up to the shelf and not itself."""
    while path != root and path.is_relative_to(root):
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return  # something is in it
        path = path.parent
