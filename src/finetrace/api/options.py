"""`--set method.option=value`: text into a method's configuration, with the nearest name where one is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetrace.core.card import Method
from finetrace.core.errors import BadInput, nearest, unknown


def parse_setting(text: str, methods: Sequence[str]) -> tuple[str, str, str]:
    """Method, option and the value as it was written. methods: those that are to run."""
    path, sign, value = text.partition("=")
    method, dot, option = path.strip().partition(".")
    if not sign or not dot or not option:
        raise BadInput(f"--set '{text}' is not a setting: write method.option=value, such as kl.passages=4.")
    if method not in methods:
        raise unknown("method in this audit", method, methods)
    return method, option, value.strip()


def configure(card: Method, options: Mapping[str, Any], settings: Mapping[str, str] | None = None) -> Any:
    """The card's configuration with `options` (values) and then `settings` (texts) over its defaults.

    Raises BadInput for what the method does not have or cannot take.
    """
    fields = {field.name: field for field in dataclasses.fields(card.config)}
    values: dict[str, Any] = {}
    for key, value in (*options.items(), *(settings or {}).items()):
        if key not in fields:
            raise BadInput(f"The method '{card.name}' has no option '{key}'.{nearest(key, fields)}")
        default = fields[key].default
        written = settings is not None and key in settings
        values[key] = _value(f"{card.name}.{key}", value, default, written=written)
    return card.config(**values)


def _value(name: str, value: Any, default: Any, *, written: bool) -> Any:
    """`value` as the type of the default, or a BadInput; a default of None takes anything."""
    found = _read(value, default) if written else value
    if default is dataclasses.MISSING or default is None:
        return found
    if isinstance(default, float) and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    if isinstance(default, tuple) and isinstance(found, list):
        return tuple(found)
    if not isinstance(found, type(default)) or isinstance(found, bool) != isinstance(default, bool):
        raise BadInput(
            f"{name} is {value!r}; it takes a {_KINDS.get(type(default), type(default).__name__)}."
        )
    return found


_KINDS = {
    bool: "yes or no (true, false)",
    int: "whole number",
    float: "number",
    str: "text",
    tuple: "list (a,b,c)",
}


def _read(text: str, default: Any) -> Any:
    """A text from the command line: as it is where a text is wanted, a list at its commas, else as JSON has it."""
    if isinstance(default, str):
        return text
    if isinstance(default, tuple) and not text.startswith("["):
        return tuple(_plain(part.strip()) for part in text.split(",") if part.strip())
    return _plain(text)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
