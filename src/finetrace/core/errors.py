"""Everything finetrace raises on purpose.

    FinetraceError            anything a user can mend; `exit_code` is what the command line ends with
    ├── BadInput              a file, id, option or row that cannot be used            (exit 2)
    │   ├── ConfigErrors      all that is wrong with a configuration, at once
    │   ├── ModelError        a checkpoint or adapter that cannot be read or does nothing
    │   └── DataError         a corpus that cannot be read
    ├── MissingExtra          an optional library is not installed                     (exit 2)
    ├── Undecided             a rule was not measured or could not be decided          (exit 4)
    └── RuleBroken            a `--fail-on` rule broke                                 (exit 3)

A message says what is wrong, why it is likely so, and how to mend it, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FinetraceError(Exception):
    """An error that a user can mend: shown as one line, without a traceback."""

    exit_code = 1


class BadInput(FinetraceError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigErrors(BadInput):
    """All that is wrong with a configuration, found before anything loads."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class ModelError(BadInput):
    """A checkpoint or adapter that cannot be read, does not fit its base, or changes nothing."""


class DataError(BadInput):
    """A corpus that cannot be read, or has nothing in it."""


class MissingExtra(BadInput):
    """An optional library is needed here and is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"This needs {library}, which is not installed: pip install 'finetrace[{extra}]'")


class Undecided(FinetraceError):
    """A rule was asked for that was not measured, or whose interval crosses its margin."""

    exit_code = 4


class RuleBroken(FinetraceError):
    """A `--fail-on` rule broke: its whole interval lies beyond the margin."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not known, with the nearest one that is.

    >>> str(unknown("method", "kll", ["kl", "pca"]))
    "There is no method 'kll'. Did you mean 'kl'? Known: kl, pca."
    """
    return BadInput(f"There is no {kind} '{name}'.{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What follows the full stop of an error about a name: the nearest known one, if any is near, and all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."
