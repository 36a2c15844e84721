"""One word of a command line in Hydra's grammar: `key=value`, lists, sweeps, quotes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from finetrace.core.errors import BadInput

__all__ = ["MOST_RUNS", "Glob", "Word", "parse"]

MOST_RUNS = 10_000
"""Runs of one sweep: the catalogue with every method is half of it."""


@dataclass(frozen=True)
class Glob:
    """Names to be matched: `glob(mix*)`, `glob([a*, b*], exclude=*_x)`."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def matches(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of `names` that are meant, in their order."""
        return tuple(
            name
            for name in names
            if any(fnmatchcase(name, one) for one in self.include)
            and not any(fnmatchcase(name, one) for one in self.exclude)
        )


@dataclass(frozen=True)
class Word:
    """A word as it was read. key: dotted, or a group (`diffing/method`). value: plain values. written: what stands right
    of `=`, for a text that looks like a number. sweep: the words that it stands for, or the names that it matches."""

    text: str
    key: str
    value: Any = None
    written: str = ""
    sweep: tuple[str, ...] | Glob | None = None


@lru_cache(maxsize=8192)
def parse(text: str) -> Word:
    """A word; BadInput says what is wrong with its form."""
    key, sign, written = text.partition("=")
    key, written = key.strip(), written.strip()
    if key.startswith("~"):
        raise BadInput(f"'{text}' takes something out, which a run has no use for: set it, as in key=null.")
    if not sign or not key.lstrip("+"):
        raise BadInput(f"'{text}' is no setting: write key=value, as in seed=1.")
    override = _override(text, written)
    if override.package is not None:
        raise BadInput(
            f"'{text}' names a package, and a group has but one place here: leave out '@' and the rest."
        )
    name = override.key_or_group
    if override.is_sweep_override():
        return Word(text, name, written=written, sweep=_sweep(override, text))
    return Word(text, name, override.value(), written)


def _override(text: str, written: str) -> Any:
    # Imported when the first word is read: `--help` and lists do without it.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        if written and written[0] not in "'\"[{":
            hint = " A text with signs in it stands in quotes, as in key='\"a > b\"'."
        else:
            hint = " Quotes and brackets come in pairs, and texts with signs in them stand in quotes."
        reason = str(error).splitlines()[0] if str(error) else "it is none of Hydra's forms"
        raise BadInput(f"'{_short(text)}' cannot be read: {_short(reason)}.{hint}") from None
    except (RecursionError, OverflowError) as error:
        raise BadInput(f"'{_short(text)}' cannot be read: {type(error).__name__}.") from None


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."


def _sweep(override: Any, text: str) -> tuple[str, ...] | Glob:
    from hydra.core.override_parser.types import Glob as HydraGlob
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    swept = override.value()
    if isinstance(swept, HydraGlob):
        return Glob(tuple(swept.include), tuple(swept.exclude))
    if isinstance(swept, RangeSweep) and _length(swept) > MOST_RUNS:
        raise BadInput(f"'{text}' is a sweep of more than {MOST_RUNS:,} runs.")
    try:
        values = tuple(override.sweep_string_iterator())
    except (HydraException, TypeError, ValueError) as error:
        raise BadInput(f"'{text}' is no sweep that can be read: {error}.") from None
    if not values:
        raise BadInput(f"'{text}' is a sweep of nothing.")
    return tuple(f"{override.key_or_group}={value}" for value in values)


def _length(swept: Any) -> float:
    if swept.start is None or swept.stop is None or not swept.step:
        return math.inf
    return (swept.stop - swept.start) / swept.step
