"""What is on a shelf, found fast. The index beside the runs is a cache and never a source of truth.

    <root>/.index.jsonl   its version and checksum, then one line a run: what a listing needs, manifest, numbers

Every listing looks at the times and sizes of every run's folder and manifest; what changed is read again, what is gone is
left out, and the index is written anew, whole or not at all. So writers that run at once, or are killed, can cost it what it
knew and nothing else. A run whose manifest is missing, or names a file that is, is not listed. The content of files is not
checked here: whoever loads a result does that.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetrace.core.estimate import Estimate
from finetrace.core.files import write_bytes

INDEX = ".index.jsonl"
MANIFEST, RESULT = "manifest.json", "result.json"
PLACE = ("base", "tuned", "variant", "method", "key")
_FORMAT = 1
# Seconds: a file that is younger may change again and keep its times, where a clock is coarse. It is read each time.
_SETTLED = 2.0
_FIELDS = ("value", "unit", "n", "clusters", "low", "high")
# A top-level key of our own JSON: one space deep, and no string holds a bare newline.
_NUMBERS = '\n "numbers": '


@dataclass(frozen=True)
class Entry:
    """A whole run. folder: relative to the shelf. base, ..., key: its address. told, read: manifest and numbers as JSON,
    taken apart when they are asked for."""

    folder: str
    base: str
    tuned: str
    variant: str
    method: str
    key: str
    contrast: str
    created: str
    told: bytes
    read: bytes = b""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.told)

    @cached_property
    def numbers(self) -> dict[str, Estimate] | None:
        """Key -> figure over all slices, without replicates. None where they were not asked for; empty where there are none
        or result.json was changed after the run."""
        if not self.read:
            return None
        return {key: Estimate(*fields) for key, fields in json.loads(self.read).items()}


@dataclass(frozen=True)
class _Known:
    """A run with the stamps that its files had; line: as it stands in the index, or b"" if it does not."""

    stamps: list[int]
    entry: Entry
    line: bytes = b""


def entries(root: Path, wanted: Callable[[Entry], bool] | None = None) -> list[Entry]:
    """All whole runs below `root`, in path order. wanted: whether a run's numbers are asked for."""
    before, found, started = _read(root), dict[str, _Known](), time.time()
    for folder in folders(root):
        known = _look(f"{root}/{folder}", folder, before.get(folder))
        if known is None:
            continue
        if wanted is not None and not known.entry.read and wanted(known.entry):
            known = _Known(known.stamps, replace(known.entry, read=_numbers(root / folder, known.entry)))
        found[folder] = known
    if found.keys() != before.keys() or not all(known.line for known in found.values()):
        _write(root, found, before, started)
    return [known.entry for known in found.values()]


def folders(root: Path) -> Iterator[str]:
    """Folders that may hold a run, five levels below `root`, in path order; names that start with a dot are not ours."""
    yield from _below(str(root), "", len(PLACE))


def _below(root: str, inside: str, levels: int) -> Iterator[str]:
    try:
        with os.scandir(f"{root}/{inside}") as found:
            names = sorted([one.name for one in found if one.name[0] != "." and one.is_dir()])
    except OSError:
        return  # removed since, or not to be read
    for name in names:
        folder = f"{inside}/{name}" if inside else name
        if levels == 1:
            yield folder
        else:
            yield from _below(root, folder, levels - 1)


def _look(path: str, folder: str, known: _Known | None) -> _Known | None:
    """The run in `path` as it is now: what the index knew if nothing changed, else read again; None if it is not whole."""
    try:
        stamps = _stamps(path)
        if known is not None and known.stamps == stamps:
            return known
        manifest = read_manifest(Path(path))
    except OSError:
        return None
    if manifest is None or not all(os.path.exists(f"{path}/{name}") for name in manifest["files"]):
        return None
    place = {part: manifest["address"][part] for part in PLACE}
    told = json.dumps(manifest, separators=(",", ":")).encode()
    contrast, created = str(manifest.get("contrast", "")), str(manifest.get("created", ""))
    return _Known(stamps, Entry(folder, **place, contrast=contrast, created=created, told=told))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in `folder`; None if what is there does not say what the run is called and which files, by plain names,
    it has. OSError where there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    address, files = found.get("address"), found.get("files")
    if not isinstance(address, dict) or not isinstance(files, dict):
        return None
    if not all(isinstance(address.get(part), str) for part in PLACE):
        return None
    return found if files and all(name == os.path.basename(name) for name in files) else None


def _stamps(path: str) -> list[int]:
    """When the run's folder changed, which it does as files come and go; and times and size of the manifest."""
    around, inside = os.stat(path), os.stat(f"{path}/{MANIFEST}")
    return [
        around.st_mtime_ns,
        around.st_ctime_ns,
        inside.st_mtime_ns,
        inside.st_ctime_ns,
        inside.st_size,
    ]


def _numbers(path: Path, entry: Entry) -> bytes:
    """The figures over all slices, as JSON; none if result.json is not what the manifest vouches for."""
    try:
        data = (path / RESULT).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.manifest["files"].get(RESULT):
            return b"{}"
        text = data.decode()
        start = text.find(_NUMBERS)
        found = json.JSONDecoder().raw_decode(text, start + len(_NUMBERS))[0] if start >= 0 else {}
        plain = {key: [one[field] for field in _FIELDS] for key, one in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return b"{}"
    return json.dumps(plain, separators=(",", ":")).encode()


def _read(root: Path) -> dict[str, _Known]:
    """What the index holds; nothing if it is not there, of another version, or damaged."""
    try:
        head, _, body = (root / INDEX).read_bytes().partition(b"\n")
    except OSError:
        return {}
    if head != _head(body):
        return {}
    lines = body.split(b"\n")[:-1]
    parts = [line.split(b"\t") for line in lines]
    heads = json.loads(b"[%s]" % b",".join([part[0] for part in parts]))
    return {
        fields[0]: _Known(stamps, Entry(*fields, told=told, read=read), line)
        for (stamps, *fields), (_, told, read), line in zip(heads, parts, lines, strict=True)
    }


def _head(body: bytes) -> bytes:
    return f"finetrace-index {_FORMAT} {len(body)} {zlib.crc32(body)}".encode()


def _write(root: Path, found: Mapping[str, _Known], before: Mapping[str, _Known], started: float) -> None:
    """The index of what was found; runs whose files are too young to be sure of are left out."""
    limit = int((started - _SETTLED) * 1e9)
    lines = [
        known.line or _line(known) for known in found.values() if known.line or max(known.stamps[:4]) < limit
    ]
    if lines == [known.line for known in before.values()]:
        return
    body = b"".join([line + b"\n" for line in lines])
    try:
        write_bytes(root / INDEX, _head(body) + b"\n" + body)
    except OSError:
        return  # a shelf that may only be read, or a full disk: the listing is right all the same


def _line(known: _Known) -> bytes:
    one = known.entry
    fields = (one.base, one.tuned, one.variant, one.method, one.key, one.contrast, one.created)
    head = json.dumps([known.stamps, one.folder, *fields], separators=(",", ":")).encode()
    return b"\t".join((head, one.told, one.read))
