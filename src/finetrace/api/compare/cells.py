"""Each run's number, read against its noise floor and its nulls, as an audit reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetrace.api.compare.chosen import Placed, Selection
from finetrace.api.request import Chosen, choose
from finetrace.api.verdicts import joint_verdicts, readings, worsening
from finetrace.core.card import Method
from finetrace.core.comparison import Cell
from finetrace.core.errors import unknown
from finetrace.core.findings import SliceVerdict
from finetrace.core.shelf import figures, load
from finetrace.stats import overall


@dataclass(frozen=True)
class Asked:
    """Which number of which method, and on which slice (None: over all of them)."""

    chosen: Chosen
    number: str
    slice: str | None

    @property
    def card(self) -> Method:
        return self.chosen.card

    @property
    def judged(self) -> bool:
        """Whether the method gives change verdicts about this number."""
        return self.number == self.card.primary


@dataclass(frozen=True)
class Read:
    """A run with what was found in it and beside it, by contrast label, as an audit has it."""

    run: Placed
    results: Mapping[str, Any]
    trained: bool


def asked_for(method: str, number: str | None, where: str | None) -> Asked:
    """The number: the method's primary one unless named, or its first measure where it has none."""
    chosen = choose(method, {})
    card = chosen.card
    usual = card.primary or (card.measures[0].key if card.measures else "")
    return Asked(chosen, number or usual, where)


def read(asked: Asked, selection: Selection) -> list[Read]:
    """Every run with its nulls and its floor. Of most methods only the numbers are read; of one whose page withholds some,
    all of the result."""
    whole = hasattr(asked.card.part("describe"), "withheld_on")
    kind = asked.card.part("result").Result if whole else None
    seen: dict[Path, Any] = {}

    def result(one: Placed) -> Any:
        if one.folder not in seen:
            seen[one.folder] = figures(one.folder) if kind is None else load(one.folder, kind)
        return seen[one.folder]

    found = []
    for run in selection.runs:
        results: dict[str, Any] = {"pair": load_once(run, kind)}
        floor = selection.floor(run)
        if floor is not None:
            results["self"] = result(floor)
        for null in selection.nulls(run):
            results[f"null:{null.entry.tuned} {null.model[:8]}"] = result(null)
        found.append(Read(run, results, selection.trained(run)))
    _check(asked, found)
    return found


def load_once(run: Placed, kind: type | None) -> Any:
    return figures(run.folder) if kind is None else load(run.folder, kind)


def _check(asked: Asked, found: Sequence[Read]) -> None:
    """The number and the slice are there, in some run at least."""
    keys = {key for one in found for key in one.results["pair"].numbers}
    if asked.number not in keys:
        raise unknown(f"number of {asked.card.name}", asked.number, keys)
    slices = {name for one in found for name in one.results["pair"].slices}
    if asked.slice is not None and asked.slice not in slices:
        raise unknown("slice in these runs", asked.slice, slices)


def cells(asked: Asked, found: Sequence[Read]) -> list[Cell]:
    """One a run, in order. All change verdicts are one Holm family: every cell on every slice that is tested."""
    names = [str(number) for number in range(len(found))]
    labels = _labels([one.run for one in found])
    verdicts: dict[str, dict[str, SliceVerdict]] = {}
    if asked.judged:
        slices = [] if asked.slice is None else [asked.slice]
        usable = {
            name: one.results for name, one in zip(names, found, strict=True) if _current(asked, one.run)
        }
        verdicts = joint_verdicts(asked.chosen, usable, slices)
    return [
        _cell(asked, one, label, verdicts.get(name, {}))
        for name, one, label in zip(names, found, labels, strict=True)
    ]


def _current(asked: Asked, run: Placed) -> bool:
    """Whether the result is of the version of the method whose margin we know."""
    return run.entry.manifest.get("version") == asked.card.version


def _cell(asked: Asked, one: Read, label: str, verdicts: Mapping[str, SliceVerdict]) -> Cell:
    entry, pair = one.run.entry, one.results["pair"]
    there = pair.numbers if asked.slice is None else pair.slices.get(asked.slice, {})
    reading = None
    if asked.number in there:
        reading = readings(asked.card, one.results, asked.slice, "null")[asked.number]
    cell = Cell(
        base=entry.base,
        organism=entry.tuned,
        variant=entry.variant,
        key=entry.key,
        folder=str(one.run.folder),
        created=entry.created,
        label=label,
        reading=reading or _missing(asked, one),
        verdicts=verdicts,
    )
    if asked.judged and reading is not None:
        return _judged(asked, one, cell)
    return _measured(asked, one, cell)


def _missing(asked: Asked, one: Read) -> Any:
    """No data: the run has not this number, or not on this slice."""
    from finetrace.core.estimate import Estimate
    from finetrace.core.findings import Reading

    unit = dict(asked.card.keys).get(asked.number, "")
    return Reading(Estimate(None, unit, 0, 0))


def _judged(asked: Asked, one: Read, cell: Cell) -> Cell:
    """The change word of a cell: that of its slice, or what all its slices come to."""
    if not _current(asked, one.run):
        told = one.run.entry.manifest.get("version")
        reason = f"a result of version {told} of {asked.card.name}; this finetrace knows version {asked.card.version}"
        return replace(cell, word="undecided", reason=reason)
    if not cell.verdicts:
        return replace(cell, word="undecided", reason="no slice that the method tests")
    word = overall(verdict.change for verdict in cell.verdicts.values())
    where = max(cell.verdicts, key=lambda name: _says(cell.verdicts[name], word))
    reason = cell.verdicts[where].reason
    if not cell.verdicts[where].k and one.trained:
        reason = "the nulls here were trained by an audit: their size is arbitrary, and only at the pair's dose do they decide"
    return replace(cell, word=word, where=where, reason=reason if word == "undecided" else "")


def _says(verdict: SliceVerdict, word: str) -> tuple[bool, float]:
    """How much a slice has to do with the cell's word: it has the same one, then the larger ratio."""
    return verdict.change == word, verdict.ratio or 0.0


def _measured(asked: Asked, one: Read, cell: Cell) -> Cell:
    """The safety word of a cell, where the number is a measure; each on its own, as in its audit."""
    measure = next((measure for measure in asked.card.measures if measure.key == asked.number), None)
    if measure is None or asked.slice is not None or cell.reading.value is None:
        return cell
    return replace(cell, word=worsening(measure, one.results, "null").word)


def _labels(runs: Sequence[Placed]) -> list[str]:
    """A name for each run, as short as tells them apart: organism, variant, base, then its settings or its weights."""
    several = len({one.entry.base for one in runs}) > 1
    names = [_name(one, several) for one in runs]
    values: dict[str, set[str]] = {}
    for one in runs:
        for name, value in (one.protocol or {}).items():
            values.setdefault(name, set()).add(str(value))
    varied = {name for name, found in values.items() if len(found) > 1}
    return _apart(
        names, [lambda i: _settings(runs[i], varied), lambda i: runs[i].model[:6], lambda i: str(i + 1)]
    )


def _name(one: Placed, several: bool) -> str:
    variant = "" if one.entry.variant == "default" else f" {one.entry.variant}"
    return f"{one.entry.tuned}{variant}{f' on {one.entry.base}' if several else ''}"


def _settings(one: Placed, varied: set[str]) -> str:
    plain = {name: value for name, value in (one.protocol or {}).items() if name in varied and _short(value)}
    return ", ".join(f"{name} {str(value).removeprefix('torch.')}" for name, value in sorted(plain.items()))


def _short(value: Any) -> bool:
    return isinstance(value, int | float | str | bool) and len(str(value)) < 20


def _apart(names: list[str], more: Sequence[Callable[[int], str]]) -> list[str]:
    """The names, with as much more as it takes that no two are the same."""
    for add in more:
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [
            f"{name} ({extra})" if name in twice and (extra := add(i)) else name
            for i, name in enumerate(names)
        ]
    return names
