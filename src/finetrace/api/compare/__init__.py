"""One number of one method over many runs: `compare` reads a shelf, `write` puts what it found into a folder."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetrace.api.compare.cells import Asked, Read, asked_for, cells, read
from finetrace.api.compare.chosen import Placed, Selection, select
from finetrace.api.compare.differences import differences
from finetrace.api.compare.layout import BY, curves, matrices, turned_of
from finetrace.api.compare.overlap import overlap
from finetrace.api.compare.protocol import differing, shared
from finetrace.core.comparison import Cell, Comparison
from finetrace.core.errors import BadInput, ConfigErrors, unknown

__all__ = ["BY", "compare", "write"]

# An audit makes do with three nulls; fewer decide nothing.
_ENOUGH = 3


def compare(
    runs: Sequence[str] = (),
    *,
    folder: str | Path = "finetrace-runs",
    method: str | None = None,
    number: str | None = None,
    slice: str | None = None,
    by: str = "variant",
    anyway: bool = False,
    command: str = "",
) -> Comparison:
    """One number of one method over many runs of pairs.

    runs: run folders, folders of results, keys, and filters such as `organism=cake_bake`; all in `folder` if none is named.
    number: the method's primary one unless named. slice: None for all together. by: variant, organism, model or dial.
    Raises ConfigErrors, with all that differs, where the runs were not made alike; `anyway` puts them together all the same.
    """
    if by not in BY:
        raise unknown("way to lay runs out", by, BY)
    selection = select(list(runs), Path(folder), method)
    apart = _apart(selection.runs, by)
    if apart and not anyway:
        raise ConfigErrors(
            [
                *apart,
                "These runs do not differ by the fine-tune alone, so they are not put in one matrix. Narrow them down "
                "(seed=0, version=1, organism=NAME, a folder), or add --anyway.",
            ]
        )
    asked = asked_for(selection.method, number, slice)
    found = read(asked, selection)
    made = cells(asked, found)
    if by == "dial" and not any(turned_of(cell) for cell in made):
        raise BadInput("None of these runs is of a variant whose name says how far something was turned.")
    return _whole(asked, selection, found, made, by, tuple(apart), command)


def _apart(runs: Sequence[Placed], by: str) -> list[str]:
    """What differs between runs that would share a matrix: all of them by model, else those on one base."""
    if by == "model":
        return differing(runs, across_bases=True)
    bases = dict.fromkeys(one.entry.base for one in runs)
    problems = []
    for base in bases:
        here = [one for one in runs if one.entry.base == base]
        lead = f"On {base}: " if len(bases) > 1 else ""
        problems += [f"{lead}{text}" for text in differing(here, across_bases=False)]
    return problems


def _whole(
    asked: Asked,
    selection: Selection,
    found: Sequence[Read],
    made: Sequence[Cell],
    by: str,
    apart: tuple[str, ...],
    command: str,
) -> Comparison:
    pairs, why = differences(asked, found, made)
    counts = [sum(label.startswith("null:") for label in one.results) for one in found]
    units = [cell.estimate.unit for cell in made if cell.reading.value is not None]
    return Comparison(
        method=asked.card.name,
        version=asked.card.version,
        number=asked.number,
        unit=units[0] if units else "",
        slice=asked.slice,
        by=by,
        matrices=matrices(made, by),
        curves=curves(made),
        differences=pairs,
        no_differences=why,
        overlap=overlap(asked, selection, found, made),
        family=sum(len(cell.verdicts) for cell in made),
        nulls=(min(counts), max(counts)),
        apart=apart,
        warnings=tuple(_warnings(asked, found, made, by)),
        settings=shared(selection.runs),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command or "Python",
    )


def _warnings(asked: Asked, found: Sequence[Read], made: Sequence[Cell], by: str) -> list[str]:
    told = []
    if not asked.judged and asked.card.primary is not None:
        told.append(
            f"The change verdicts of {asked.card.name} are about {asked.card.primary}: beside {asked.number} stand its nulls, "
            "and no verdict."
        )
    if len({cell.base for cell in made}) > 1:
        told.append(
            "These runs are on several bases. Figures per token are of each base's own tokens, and a model that is less sure "
            "moves further for the same training: read each against its own nulls."
        )
    few = sum(len([label for label in one.results if label.startswith("null:")]) < _ENOUGH for one in found)
    if asked.judged and few:
        told.append(
            f"{few} of {len(found)} runs have fewer than {_ENOUGH} nulls of their own settings on the shelf and are undecided: "
            "audits with --null, on the same base, texts and seed, make some."
        )
    if any(one.trained for one in found):
        told.append("Nulls that an audit trained itself are left out: their size is arbitrary.")
    missing = [cell.label for cell in made if cell.reading.value is None]
    if missing:
        told.append(f"No data: {', '.join(missing[:8])}{' and others' if len(missing) > 8 else ''}.")
    return told


COLUMNS = {
    "base": "string", "organism": "string", "variant": "string", "method": "string", "number": "string", "slice": "string",
    "label": "string", "value": "double", "unit": "string", "n": "int64", "clusters": "int64", "low": "double",
    "high": "double", "floor": "double", "nulls": "int64", "nulls_low": "double", "nulls_high": "double", "word": "string",
    "verdict_on": "string", "ratio": "double", "ratio_low": "double", "ratio_high": "double", "p": "double",
    "p_holm": "double", "key": "string", "created": "string", "folder": "string",
}  # fmt: skip


def rows(found: Comparison) -> list[dict[str, Any]]:
    """One flat row a cell."""
    return [_row(found, cell) for cell in found.cells]


def _row(found: Comparison, cell: Cell) -> dict[str, Any]:
    one, nulls, verdict = cell.estimate, cell.reading.nulls, cell.verdict
    judged = None if verdict is None else asdict(verdict)
    return {
        "base": cell.base, "organism": cell.organism, "variant": cell.variant, "method": found.method,
        "number": found.number, "slice": found.slice, "label": cell.label, "value": one.value, "unit": one.unit, "n": one.n,
        "clusters": one.clusters, "low": one.low, "high": one.high, "floor": cell.reading.floor,
        "nulls": 0 if nulls is None else nulls.k, "nulls_low": None if nulls is None else nulls.low,
        "nulls_high": None if nulls is None else nulls.high, "word": cell.word, "verdict_on": cell.where,
        "ratio": judged and judged["ratio"], "ratio_low": judged and judged["low"], "ratio_high": judged and judged["high"],
        "p": judged and judged["p"], "p_holm": judged and judged["p_holm"], "key": cell.key, "created": cell.created,
        "folder": cell.folder,
    }  # fmt: skip


def write(found: Comparison, folder: Path) -> Path:
    """Writes compare.json, compare.parquet and, last, compare.html; returns the last one's path."""
    from finetrace.core.shelf_export import write_table
    from finetrace.report.compare_page import write_comparison

    write_table(folder / "compare.parquet", rows(found), COLUMNS)
    return write_comparison(found, folder)
