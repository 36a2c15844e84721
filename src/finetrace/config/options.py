"""Options of a method over its defaults, checked against its own dataclass; the nearest name where one is wrong."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from finetrace.config.fill import UNIONS, UNREADABLE, Told, hints, read
from finetrace.core.card import Method
from finetrace.core.errors import BadInput, ConfigErrors, nearest, unknown

__all__ = ["check_options", "configure", "parse_setting"]


def parse_setting(text: str, methods: Sequence[str]) -> tuple[str, str, str]:
    """`--set method.option=value`: method, option and the value as it was written. methods: those that are to run."""
    path, sign, value = text.partition("=")
    method, dot, option = path.strip().partition(".")
    if not sign or not dot or not option:
        raise BadInput(f"--set '{text}' is not a setting: write method.option=value, such as kl.passages=4.")
    if method not in methods:
        raise unknown("method in this audit", method, methods)
    return method, option, value.strip()


def configure(card: Method, options: Mapping[str, Any], settings: Mapping[str, str] | None = None) -> Any:
    """The card's configuration with `options` (values) and then `settings` (texts) over its defaults.

    Raises BadInput for what the method does not have or cannot take, ConfigErrors for several at once.
    """
    wanted = hints(card.config)
    written = {key: _written(text, wanted.get(key)) for key, text in (settings or {}).items()}
    config, problems = check_options(card, {**options, **written})
    if problems:
        raise BadInput(problems[0]) if len(problems) == 1 else ConfigErrors(problems)
    return config


def check_options(card: Method, values: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The card's configuration with `values` over its defaults, and all that is wrong with them; None if anything is."""
    wanted = hints(card.config)
    told = Told()
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in wanted:
            told.problems.append(f"The method '{card.name}' has no option '{key}'.{nearest(key, wanted)}")
        elif (found := read(wanted[key], value, f"{card.name}.{key}", told)) is not UNREADABLE:
            made[key] = found
    try:
        config = card.config(**made)
        card.needs(config)
    except ConfigErrors as error:
        return None, [*told.problems, *error.problems]
    except BadInput as error:
        return None, [*told.problems, str(error)]
    return (None if told.problems else config), told.problems


def _written(text: str, hint: Any) -> Any:
    """A text from the command line: as it is where a text is wanted, a list at its commas, else as JSON has it."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
    if str in kinds and not (type(None) in kinds and text in ("null", "None")):
        return text
    if any(typing.get_origin(kind) is tuple for kind in kinds) and not text.startswith("["):
        return tuple(_plain(part.strip()) for part in text.split(",") if part.strip())
    return _plain(text)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
