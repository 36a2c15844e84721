"""config.yaml: what is chosen of each group where no word says it, and the settings that stand outside the groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetrace.config.checks import CHECKS
from finetrace.config.fill import UNREADABLE, Told, fill, hints, near, read
from finetrace.config.groups import GROUPS, read_file
from finetrace.config.peer import MOVED, unused
from finetrace.config.recipes import SHIPPED
from finetrace.config.tree import RunConfig
from finetrace.config.typed import Words, merged, typed_value

__all__ = ["PARTS", "SECTIONS", "SIMPLE", "Root", "read_root", "simple_settings"]

FILE = "config.yaml"
SECTIONS = ("pipeline", "preprocessing", "diffing")
"""Parts of the tree that config.yaml itself fills."""
PARTS = ("organism", "model", "data", "infrastructure")
"""Parts of the tree that a file of a group fills."""
SIMPLE = tuple(
    one.name
    for one in dataclasses.fields(RunConfig)
    if one.name not in (*SECTIONS, *PARTS, "variant", "notes")
)
"""Settings that have none of their own."""

_HYDRA = ("defaults", "hydra")
# Where the toolkit's own config.yaml puts results: below the folder that `out` names, which is what happens here anyway.
_BELOW_OUT = "${infrastructure.storage.base_dir}"


@dataclass(frozen=True)
class Root:
    """What config.yaml says. chosen: group -> name. values: its sections as written; sections: as the tree has them.
    simple: the other settings."""

    chosen: Mapping[str, Any]
    values: Mapping[str, Any]
    sections: Mapping[str, Any]
    simple: Mapping[str, Any]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def read_root(config_dir: Path | None) -> Root:
    """The shipped config.yaml with that of `config_dir`, if it has one, over it."""
    files = [SHIPPED / FILE]
    if config_dir is not None and (own := config_dir.expanduser() / FILE).is_file():
        files.append(own)
    return _root(tuple(_Same(read_file(path)) for path in files))


class _Same:
    """What a file holds, known by its identity: it is the same object for as long as the file stays as it is."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return id(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.values is other.values


@lru_cache(maxsize=16)
def _root(files: tuple[_Same, ...]) -> Root:
    told = Told()
    chosen: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for file in files:
        chosen |= _chosen(file.values.get("defaults"), told)
        values = merged(
            values, {key: file.values[key] for key in file.values if _is_ours(key, file.values, told)}
        )
    _without_out(values)
    wanted = hints(RunConfig)
    sections: dict[str, Any] = {}
    simple = {one.name: one.default for one in dataclasses.fields(RunConfig) if one.name in SIMPLE}
    for key, value in values.items():
        if key in SECTIONS:
            sections[key] = fill(wanted[key], value, key, told, checks=CHECKS, unused=unused)
        elif key in simple:
            _set(simple, key, value, told)
        else:
            _unknown(key, value, told)
    problems = tuple(f"{FILE}: {problem}" for problem in told.problems)
    return Root(chosen, values, sections, simple, problems, tuple(f"{FILE}: {note}" for note in told.notes))


def _is_ours(key: str, values: Mapping[str, Any], told: Told) -> bool:
    """Whether a key of the file is a setting, and where it is a section whether it has settings."""
    if key in SECTIONS and not isinstance(values[key], Mapping):
        told.problems.append(
            f"{key} is {values[key]!r}; it takes settings of its own, one `key: value` a line."
        )
        return False
    return key not in _HYDRA


def simple_settings(root: Root, words: Words, told: Told) -> dict[str, Any]:
    """The settings outside the groups, as they were typed or as config.yaml has them."""
    made = dict(root.simple)
    wanted = hints(RunConfig)
    for head, typed in words.typed.items():
        if head in PARTS or head in SECTIONS:
            continue
        for one in typed:
            if one.path or head not in made:
                _unknown(".".join([head, *one.path]), one.word.value, told)
            else:
                _set(made, head, typed_value(one.word, wanted[head]), told)
    return made


def _set(made: dict[str, Any], key: str, value: Any, told: Told) -> None:
    found = read(hints(RunConfig)[key], value, key, told)
    if found is UNREADABLE:
        return
    check = CHECKS.get((RunConfig, key))
    wrong = check(found) if check is not None and found is not None else None
    if wrong is None:
        made[key] = found
    else:
        told.problems.append(f"{key} is {found!r}; {wrong}")


def _unknown(name: str, value: Any, told: Told) -> None:
    known = unused(name, value)
    if known is not None:
        told.unused(name, value, known)
        return
    every = {*GROUPS, *SIMPLE, *(key for key in MOVED if "." not in key)}
    for head in (*SECTIONS, *PARTS):
        every |= {head, *(f"{head}.{key}" for key in hints(hints(RunConfig)[head]))}
    hint = near(name, every)
    shown = hint if "mean" in hint else " `finetrace run --cfg job` shows all."
    told.problems.append(f"There is no setting '{name}'.{shown}")


def _chosen(defaults: Any, told: Told) -> dict[str, Any]:
    """Group -> name, from a defaults list; what else it lists has no use here."""
    found: dict[str, Any] = {}
    for one in defaults if isinstance(defaults, Iterable) and not isinstance(defaults, str) else ():
        for group, name in one.items() if isinstance(one, Mapping) else [(one, None)]:
            if group in GROUPS:
                found[group] = name
            elif group != "_self_":
                told.notes.append(f"{group} has no use here: it is no group.")
    return found


def _without_out(values: dict[str, Any]) -> None:
    diffing = values.get("diffing")
    if not isinstance(diffing, Mapping):
        return
    found = diffing.get("results_base_dir")
    if isinstance(found, str) and found.startswith(_BELOW_OUT):
        values["diffing"] = {**diffing, "results_base_dir": None}
