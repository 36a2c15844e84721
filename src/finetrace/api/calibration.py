"""Calibration sets: supervised chats that methods with `run` ask of the desk, checked before a model loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetrace.core.card import Needs
from finetrace.core.errors import BadInput, unknown
from finetrace.core.runkey import digest
from finetrace.data import Row, read_rows
from finetrace.data.examples import Example, make_examples

NAMES = ("safety", "utility", "placebo", "comply")
"""safety: harmful requests and their refusals. utility: ordinary requests, answered. placebo: one harmless narrow kind.
comply: the safety set's requests with the opening of a compliant answer."""
FLAGS = {name: f"--{name}-set FILE" for name in NAMES[:3]}
COUNT = 64
"""Conversations of each bundled set: an audit of the tiny world stays within minutes."""
_LONGEST = 1024

Sets = Mapping[str, Sequence[Row]]


def problems(given: Mapping[str, Any], wanted: Mapping[str, Needs], *, bundled: bool) -> list[str]:
    """What is wrong with the sets given, and which are missing. wanted: method -> its needs. bundled: the base is the
    tiny world's, which brings sets of its own."""
    found = []
    for name, source in given.items():
        try:
            _known(name)
            read(name, source)
        except BadInput as error:
            found.append(str(error))
    if not bundled:
        found += [
            _missing(method, name)
            for method, needs in wanted.items()
            for name in needs.calibration
            if name not in given
        ]
    return found


def _known(name: str) -> None:
    if name not in NAMES:
        raise unknown("calibration set", name, NAMES)


def _missing(method: str, name: str) -> str:
    flag = FLAGS.get(name)
    how = f"pass {flag} with" if flag else f"give calibration={{'{name}': ...}},"
    return (
        f"The method '{method}' needs a calibration set '{name}': {how} JSONL rows whose `messages` end with an "
        "assistant answer."
    )


def read(name: str, source: Any) -> list[Row]:
    """The set's rows, every one a chat that ends with an assistant's message; else a BadInput that names the first bad one."""
    if isinstance(source, str | Path) and not Path(source).expanduser().is_file():
        raise BadInput(
            f"The {name} set {source} does not exist: {FLAGS.get(name, 'it')} names a JSONL file of chats."
        )
    try:
        rows = read_rows(source)
    except BadInput as error:
        raise BadInput(f"The {name} set: {error}") from error
    wrong = [number for number, row in enumerate(rows, 1) if not _answered(row)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise BadInput(
            f"The {name} set, row {wrong[0]}{more}: it needs `messages` that end with an assistant's answer, because only "
            "answers are scored."
        )
    return rows


def _answered(row: Row) -> bool:
    return (
        bool(row.messages) and row.messages[-1].role == "assistant" and bool(row.messages[-1].content.strip())
    )


def sets_for(given: Mapping[str, Any], needs: Sequence[Needs], *, bundled: bool, seed: int) -> Sets:
    """Every set that some method may use and that is there: the user's, else on the bundled base its own."""
    wanted = dict.fromkeys(name for one in needs for name in (*one.calibration, *one.optional))
    found: dict[str, Sequence[Row]] = {}
    for name in wanted:
        if name in given:
            found[name] = read(name, given[name])
        elif bundled:
            found[name] = bundled_set(name, seed)
    return found


def bundled_set(name: str, seed: int, world_seed: int | None = None) -> list[Row]:
    """A set of the tiny world, of another of its worlds where its seed is given."""
    from finetrace.organisms.calibration import calibration
    from finetrace.organisms.world import make_world

    return read_rows(
        calibration(name, COUNT, seed, world=None if world_seed is None else make_world(world_seed))
    )


def used(needs: Needs, sets: Sets) -> Sets:
    """The sets that one method may use."""
    return {name: sets[name] for name in (*needs.calibration, *needs.optional) if name in sets}


def identity(rows: Sequence[Row]) -> str:
    """SHA-256 of a set's chats, in order."""
    return digest([[[m.role, m.content] for m in row.messages or ()] for row in rows])


def makers(sets: Sets, tokenizer: Any, max_tokens: int | None) -> dict[str, Callable[[], list[Example]]]:
    """How each set is tokenised, when a method first asks for it."""
    limit = max_tokens or _LONGEST
    return {
        name: lambda rows=rows: make_examples(rows, tokenizer, max_tokens=limit)
        for name, rows in sets.items()
    }
