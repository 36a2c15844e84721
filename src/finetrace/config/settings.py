"""The settings of a recipe by their dotted names, read off the dataclass, and the short names that stand for them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from finetrace.config.fill import TAKES, TAKES_MANY
from finetrace.core.errors import BadInput
from finetrace.finetune.recipe import TrainRecipe

__all__ = ["SETTINGS", "SHORT", "Setting", "find"]

_TAKES_MANY = {**TAKES_MANY, str: "names, as in [q_proj, v_proj]"}


@dataclass(frozen=True)
class Setting:
    """One value of a recipe. name: dotted. kind: int, float, bool or str. many: a list of such. optional: may be null."""

    name: str
    kind: type
    many: bool
    optional: bool

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        words = _TAKES_MANY[self.kind] if self.many else TAKES[self.kind]
        return f"{words}, or null" if self.optional else words

    def parse(self, text: str) -> Any:
        """What was typed after `=`, as far as its form goes; the type is checked where it is set."""
        if self.optional and text.lower() in ("null", ""):
            return None
        if not self.many:
            return text
        inner = text.strip()
        inner = inner[1:-1] if inner[:1] + inner[-1:] in ("[]", "()") else inner
        return [part.strip().strip("'\"") for part in inner.split(",") if part.strip()]


def _settings(recipe: type, prefix: str = "") -> Iterator[Setting]:
    hints = typing.get_type_hints(recipe)
    for field in dataclasses.fields(recipe):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        wanted = next(option for option in options if option is not type(None))
        many = typing.get_origin(wanted) is tuple
        kind = typing.get_args(wanted)[0] if many else wanted
        yield Setting(prefix + field.name, kind, many, optional=type(None) in options)


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _settings(TrainRecipe)}
"""Dotted name -> setting, in the order of the recipe."""


def _short() -> dict[str, str]:
    """Last part -> dotted name, where only one setting has that last part."""
    last = [name.rpartition(".")[2] for name in SETTINGS]
    return {
        part: name
        for part, name in zip(last, SETTINGS, strict=True)
        if last.count(part) == 1 and part not in SETTINGS
    }


SHORT: dict[str, str] = {**_short(), "data": "data.source"}
"""Short name -> dotted name: `lr` for `train.lr`, `data` for `data.source`, but not `every`, of which there are two."""


def find(name: str) -> Setting:
    """The setting of a dotted or short name; an unknown one is an error with the nearest that is known."""
    dotted = SHORT.get(name, name)
    if dotted in SETTINGS:
        return SETTINGS[dotted]
    inside = [known for known in SETTINGS if known.startswith(f"{name}.")]
    if inside:
        raise BadInput(f"'{name}' has settings of its own and takes no value: {', '.join(inside)}.")
    alike = [known for known in SETTINGS if known.endswith(f".{name}")]
    if alike:
        raise BadInput(f"There is more than one '{name}': {', '.join(alike)}.")
    raise BadInput(f"There is no setting '{name}'.{_near(name)} `finetrace list settings` shows all.")


def _near(name: str) -> str:
    """A hint at the nearest known name: of the whole, else of the last part in the same section."""
    near = get_close_matches(name, [*SETTINGS, *SHORT], n=1, cutoff=0.6)
    section, _, last = name.rpartition(".")
    if not near and section:
        inside = {known.rpartition(".")[2]: known for known in SETTINGS if known.startswith(f"{section}.")}
        near = [inside[found] for found in get_close_matches(last, inside, n=1, cutoff=0.5)]
    return f" Did you mean '{near[0]}'?" if near else ""
