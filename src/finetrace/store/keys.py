"""What two keys differ in, said so that a reader sees why one thing cannot stand for the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["differences", "said"]

_MOST, _LONGEST = 6, 40


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, what is there, what was asked for), by name in order; nested mappings by dotted name.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    [('b.c', '2', '3')]
    """
    left, right = dict(_flat(there)), dict(_flat(asked))
    return [
        (name, left.get(name, "nothing"), right.get(name, "nothing"))
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]


def said(found: list[tuple[str, str, str]]) -> str:
    """Differences as one clause: what is there, then what was asked for."""
    told = [f"{name} ({there} there, {asked} asked for)" for name, there, asked in map(_short, found[:_MOST])]
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(told) + more


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{above}{name}.")
        else:
            # A tuple and the list that it is read back as are the same.
            yield f"{above}{name}", json.dumps(item, sort_keys=True)


def _short(found: tuple[str, str, str]) -> tuple[str, str, str]:
    """Long values from a little before where they part."""
    name, there, asked = found[0], found[1].strip('"'), found[2].strip('"')
    if max(len(there), len(asked)) > _LONGEST:
        alike = next(
            (i for i, (a, b) in enumerate(zip(there, asked, strict=False)) if a != b),
            min(len(there), len(asked)),
        )
        start = max(0, alike - _LONGEST // 4)
        there, asked = _cut(there, start), _cut(asked, start)
    return name, there, asked


def _cut(text: str, start: int) -> str:
    part = text[start : start + _LONGEST]
    return f"{'…' * (start > 0)}{part}{'…' * (len(text) > start + _LONGEST)}"
