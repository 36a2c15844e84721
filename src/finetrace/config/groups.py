"""The groups of YAML files (organisms, models, data, ...): a user's own folder first, then those that ship."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetrace.config.checks import CHECKS
from finetrace.config.fill import Told, fill, near
from finetrace.config.peer import MOVED, unused
from finetrace.config.reading import read_yaml
from finetrace.config.recipes import SHIPPED
from finetrace.config.tree import AUTO, DataSet, Infrastructure, ModelEntry, OrganismEntry
from finetrace.core.errors import BadInput, ConfigErrors

__all__ = ["GROUPS", "METHOD", "Entry", "entry", "has", "names", "read_entry", "read_file"]

METHOD = "diffing/method"
KINDS: dict[str, type] = {
    "organism": OrganismEntry,
    "model": ModelEntry,
    "data": DataSet,
    "infrastructure": Infrastructure,
}
GROUPS = ("organism", "model", METHOD, "data", "infrastructure")
"""The groups that a run is chosen from."""

LARGEST = 1 << 20
"""Characters of a group's file: an organism with a thousand variants has a tenth of it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_LISTED = 12
_OWN = {
    "data": "a file or hub data set of your own is data.id=PATH",
    "model": "a base of your own is a file in the folder that --config-dir names, in its group model",
    "organism": "`finetrace add-organism` writes a file for a fine-tune of your own",
}
_DESCRIBED = re.compile(r"\$\{org_desc:\s*([\w.+-]+)\s*\}")
_DEEPEST = 8


@dataclass(frozen=True)
class Entry:
    """One file of a group. values: as written. value: what it makes; for a method the same as values. problems, notes:
    what is to be said of it, without the file's name."""

    kind: str
    name: str
    path: Path
    values: Mapping[str, Any]
    value: Any
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def names(kind: str, config_dir: Path | None = None) -> tuple[str, ...]:
    """Every name that a group finds, sorted; `auto` is none."""
    found = {path.stem for folder in _folders(kind, config_dir) for path in folder.glob("*.yaml")}
    return tuple(sorted(found - {AUTO}))


def read_entry(kind: str, name: str, config_dir: Path | None = None) -> Any:
    """The entry `name` of a group, checked: an OrganismEntry, ModelEntry, DataSet or Infrastructure, or the options of a
    method as its file has them. Raises BadInput for an unknown name, ConfigErrors for all that is wrong with the file."""
    found = entry(kind, name, config_dir)
    if found.problems:
        raise ConfigErrors(f"{found.path.name}: {problem}" for problem in found.problems)
    return found.value


def entry(kind: str, name: str, config_dir: Path | None = None) -> Entry:
    """As `read_entry`, with the file's problems and notes beside what could be read."""
    path, stamp = _find(kind, name, config_dir)
    found = _entry(kind, path, stamp)
    texts = _described(found.values) if kind == "organism" else {}
    if not any("${" in text for text in texts.values()):
        return found
    try:
        quoted = {key: _with_descriptions(text, config_dir, (name,)) for key, text in texts.items()}
    except BadInput as error:
        bare = _made(kind, path, {**found.values, **dict.fromkeys(texts, "")})
        return replace(bare, problems=(*bare.problems, str(error)))
    return _made(kind, path, {**found.values, **quoted})


def has(kind: str, name: str, config_dir: Path | None = None) -> bool:
    """Whether a group has a file of that name."""
    return bool(_NAME.fullmatch(name)) and _there(kind, name, config_dir) is not None


def read_file(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, read once for as long as the file stays as it is."""
    try:
        status = path.stat()
    except OSError:
        raise BadInput(f"There is no file {path}: check the path.") from None
    return _read(path, (status.st_mtime_ns, status.st_size))


def _folders(kind: str, config_dir: Path | None) -> list[Path]:
    if kind not in GROUPS:
        raise BadInput(f"There is no group '{kind}'.{near(kind, GROUPS)}")
    own = [] if config_dir is None else [config_dir.expanduser() / kind]
    return [*own, SHIPPED / kind]


def _find(kind: str, name: str, config_dir: Path | None) -> tuple[Path, tuple[int, int]]:
    if not _NAME.fullmatch(name) or ".." in name:
        own = _OWN.get(kind, "your own lie in the folder that --config-dir names")
        raise BadInput(
            f"'{kind}={name}' holds no name: the files of a group are chosen by name, without folders; {own}."
        )
    found = _there(kind, name, config_dir)
    if found is not None:
        return found
    known = names(kind, config_dir)
    hint = near(name, known)
    if "mean" not in hint and len(known) > _LISTED:
        hint = f" `finetrace list {kind}s` shows all {len(known)}."
    raise BadInput(f"There is no {kind.rpartition('/')[2]} '{name}'.{hint}")


def _there(kind: str, name: str, config_dir: Path | None) -> tuple[Path, tuple[int, int]] | None:
    for folder in _folders(kind, config_dir):
        path = folder / f"{name}.yaml"
        try:
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            return path, (status.st_mtime_ns, status.st_size)
    return None


@lru_cache(maxsize=4096)
def _read(path: Path, stamp: tuple[int, int]) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    return read_yaml(text, str(path), largest=LARGEST)


@lru_cache(maxsize=4096)
def _entry(kind: str, path: Path, stamp: tuple[int, int]) -> Entry:
    return _made(kind, path, _read(path, stamp))


def _made(kind: str, path: Path, values: Mapping[str, Any]) -> Entry:
    named = {
        MOVED.get(f"{kind}.{key}", f"{kind}.{key}").removeprefix(f"{kind}."): values[key] for key in values
    }
    values = {"name": path.stem, **named}
    if kind not in KINDS:
        return Entry(kind, path.stem, path, values, values)
    told = Told()
    value = fill(KINDS[kind], values, kind, told, checks=CHECKS, unused=unused)
    if isinstance(value, ModelEntry) and "model_id" not in values:
        told.problems.append("'model.model_id' is missing.")
    return Entry(kind, path.stem, path, values, value, tuple(told.problems), tuple(told.notes))


def _described(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts that may quote another organism's description."""
    found = {key: values.get(key) for key in ("description", "description_long")}
    return {key: text for key, text in found.items() if isinstance(text, str)}


def _with_descriptions(text: str, config_dir: Path | None, above: tuple[str, ...]) -> str:
    """`${org_desc:NAME}` as the description of that organism."""

    def described(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in above or len(above) >= _DEEPEST:
            raise BadInput(f"organism.description_long refers to itself: {' <- '.join([*above, name])}.")
        path, stamp = _find("organism", name, config_dir)
        told = _read(path, stamp).get("description_long", "")
        return _with_descriptions(str(told).strip(), config_dir, (*above, name))

    return _DESCRIBED.sub(described, text)
