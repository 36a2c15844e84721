"""Plain values into frozen dataclasses, by their type hints; every problem is gathered and told by its dotted name."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

from finetrace.config.peer import Unused
from finetrace.config.reading import plain

__all__ = [
    "TAKES",
    "TAKES_MANY",
    "UNIONS",
    "UNREADABLE",
    "Told",
    "fill",
    "hint_at",
    "hints",
    "near",
    "read",
    "takes",
]

TAKES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}
TAKES_MANY: dict[type, str] = {
    int: "whole numbers, as in [0, 1]",
    float: "numbers, as in [0.25, 0.75]",
    str: "texts, as in [a, b]",
}
UNREADABLE: Any = object()
"""What `read` gives for a value that is wrong."""

UNIONS = (typing.Union, types.UnionType)

# PyYAML reads 1e-4 as a text, since it has no point; where a number is wanted it is that number, as Hydra has it.
_POWER = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]{1,2}")

Check = Callable[[Any], str | None]
_NO_CHECKS: Mapping[tuple[type, str], Check] = types.MappingProxyType({})


@dataclass
class Told:
    """What is to be said: problems, and notes on what was accepted though it changes nothing here."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def unused(self, name: str, value: Any, found: Unused | None) -> None:
        """A key that is known, and of no use or impossible here; where it asks for nothing there is nothing to say, nor is
        there where nothing was found."""
        if found is None:
            return
        nothing = value is None or value in ("", [], {}) or (value == 0 and value is not False)
        if found.wrong:
            self.problems.append(f"{name} cannot be done: {found.why}.")
        elif not nothing:
            self.notes.append(f"{name} has no use here: {found.why}.")


def fill(
    kind: type,
    values: Mapping[str, Any],
    name: str,
    told: Told,
    *,
    checks: Mapping[tuple[type, str], Check] = _NO_CHECKS,
    unused: Callable[[str, Any], Unused | None] = lambda name, value: None,
) -> Any:
    """A dataclass of `kind` from plain values: keys that it lacks, wrong types and what `checks` say are told.

    name: the dotted name of what is filled, "" for the root. checks: (dataclass, field) -> what is wrong with a value, if
    anything. unused: what is known of a key that the dataclass lacks, if anything. What cannot be read keeps its default.
    """
    wanted = hints(kind)
    made: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in values.items()):
        dotted = f"{name}.{key}" if name else key
        if key not in wanted:
            if (known := unused(dotted, value)) is not None:
                told.unused(dotted, value, known)
            else:
                told.problems.append(f"There is no '{dotted}'.{near(key, wanted, dotted.removesuffix(key))}")
            continue
        found = read(wanted[key], value, dotted, told, checks=checks, unused=unused)
        if found is UNREADABLE:
            continue
        if isinstance(found, str) and (key == "id" or key.endswith("_id")):
            found = found.strip()  # an id that YAML folded over two lines ends in a newline
        check = checks.get((kind, key))
        wrong = check(found) if check is not None and found is not None else None
        if wrong is not None:
            told.problems.append(f"{dotted} is {_shown(found)}; {wrong}")
        else:
            made[key] = found
    missing = [one for one in _required(kind) if one not in made and one not in values]
    told.problems += [f"'{name}.{one}' is missing." for one in missing]
    return kind(**dict.fromkeys(_required(kind), "") | made)


def read(hint: Any, value: Any, name: str, told: Told, **how: Any) -> Any:
    """`value` as `hint` wants it, or UNREADABLE, with the problem told. how: as for `fill`."""
    one, optional = _single(hint)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(one) and isinstance(one, type):
        if isinstance(value, Mapping):
            return fill(one, value, name, told, **how)
    elif typing.get_origin(one) in _MAPPINGS:
        if isinstance(value, Mapping):
            return _mapping(typing.get_args(one), value, name, told, **how)
    elif (found := _scalar_or_many(one, value)) is not UNREADABLE:
        wrong = _plain(found)
        if wrong is None:
            return found
        told.problems.append(f"{name} {wrong}")
        return UNREADABLE
    told.problems.append(f"{name} is {_shown(value)}; it takes {takes(hint)}.")
    return UNREADABLE


def takes(hint: Any) -> str:
    """What a type takes, in words."""
    one, optional = _single(hint)
    inner = typing.get_args(one)
    origin = typing.get_origin(one)
    if origin in UNIONS:
        words = " or ".join(takes(kind) for kind in inner if kind is not type(None))
    elif origin in (tuple, list):
        words = TAKES_MANY.get(inner[0], "a list, as in [a, b]")
    elif origin is typing.Literal:
        words = f"one of {', '.join(map(str, inner))}"
    else:
        words = TAKES.get(one, "settings of its own, one `key: value` a line")
    return f"{words}, or null" if optional else words


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the nearest known name, else all of them. prefix: what they stand behind."""
    names = sorted(known)
    found = get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return f" Did you mean '{prefix}{found[0]}'?"
    return f" Known: {', '.join(names) or 'none'}."


@cache
def hints(kind: type) -> dict[str, Any]:
    """Field -> type of a dataclass; anything goes where a type is written that cannot be looked up."""
    fields = [one.name for one in dataclasses.fields(kind)]
    try:
        found = typing.get_type_hints(kind)
    except NameError:  # a name that its module imports for type checkers only
        return dict.fromkeys(fields, Any)
    return {name: found[name] for name in fields}


def hint_at(kind: Any, path: tuple[str, ...]) -> Any:
    """The type at a dotted path below a dataclass; None where there is none."""
    hint, _ = _single(kind)
    for part in path:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            hint = hints(hint).get(part)
        elif typing.get_origin(hint) in _MAPPINGS:
            hint = typing.get_args(hint)[1]
        else:
            return None
        hint, _ = _single(hint)
    return hint


_MAPPINGS = (Mapping, typing.get_origin(Mapping[str, str]), dict)


def _mapping(kinds: tuple[Any, ...], values: Mapping[Any, Any], name: str, told: Told, **how: Any) -> Any:
    inner = kinds[1]
    made: dict[str, Any] = {}
    for key, value in values.items():
        if inner is Any:
            wrong = _plain(value)
            if wrong is not None:
                told.problems.append(f"{name}.{key} {wrong}")
                continue
            made[str(key)] = value
        elif (
            found := read(inner, {} if value is None else value, f"{name}.{key}", told, **how)
        ) is not UNREADABLE:
            made[str(key)] = found
    return types.MappingProxyType(made)


def _scalar_or_many(kind: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        found = (_scalar_or_many(one, value) for one in inner if one is not type(None))
        return next((one for one in found if one is not UNREADABLE), UNREADABLE)
    if origin in (tuple, list):
        given = value if isinstance(value, list | tuple) else [value]
        kinds = inner if origin is tuple and inner[-1] is not ... else (inner[0],) * len(given)
        if len(kinds) != len(given):
            return UNREADABLE
        many = [_scalar_or_many(one, part) for one, part in zip(kinds, given, strict=True)]
        return UNREADABLE if any(one is UNREADABLE for one in many) else origin(many)
    if origin is typing.Literal:
        return value if value in inner else UNREADABLE
    return _scalar(kind, value)


def _scalar(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _POWER.fullmatch(value):
        return float(value)
    if isinstance(value, bool) and kind is not bool:
        return UNREADABLE
    return value if isinstance(kind, type) and isinstance(value, kind) else UNREADABLE


def _plain(value: Any) -> str | None:
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Mapping):
        return next((wrong for wrong in map(_plain, value.values()) if wrong), None)
    return plain(value)


def _single(hint: Any) -> tuple[Any, bool]:
    """The type without None, and whether None was in it."""
    if typing.get_origin(hint) in UNIONS:
        others = [one for one in typing.get_args(hint) if one is not type(None)]
        return (others[0] if len(others) == 1 else hint), len(others) < len(typing.get_args(hint))
    return hint, hint is type(None)


@cache
def _required(kind: type) -> tuple[str, ...]:
    return tuple(
        one.name
        for one in dataclasses.fields(kind)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
