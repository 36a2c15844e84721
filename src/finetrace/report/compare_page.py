"""A comparison of many runs as one self-contained HTML file, as JSON, and as text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetrace.core.comparison import Cell, Comparison, Curve, Difference, Matrix
from finetrace.core.files import write_text
from finetrace.core.findings import NullRange
from finetrace.core.page import Figure, Heatmap, Line, Scatter, Series
from finetrace.drawing.plotly import THEMES, draw, plotly_js
from finetrace.drawing.text import aligned, one_line
from finetrace.report import view, words
from finetrace.report.frame import asset, environment, policy, script_json, slug, untitled
from finetrace.report.headline import ALL_SLICES
from finetrace.report.json import finetrace_version, to_text

__all__ = ["as_text", "comparison_json", "render_comparison", "write_comparison"]

SCHEMA = 1
# Differences that the page shows, most certain first; compare.json has all.
SHOWN = 40
# Above this ratio between its largest and smallest figure an axis is logarithmic.
_WIDE = 10.0
_WIDE_X = 50.0


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Writes compare.json and, last, compare.html into `folder`; returns the latter's path."""
    write_text(folder / "compare.json", to_text(comparison_json(found)))
    write_text(folder / "compare.html", render_comparison(found))
    return folder / "compare.html"


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Everything under stable keys, but for replicates. In matrices a cell is the place of its run in `runs`."""
    runs = list(found.cells)
    place = {id(cell): number for number, cell in enumerate(runs)}
    return {
        "schema": SCHEMA,
        "finetrace": finetrace_version(),
        "method": found.method,
        "version": found.version,
        "number": found.number,
        "unit": found.unit,
        "slice": found.slice,
        "by": found.by,
        "runs": [_run(cell) for cell in runs],
        "matrices": [
            {
                "title": one.title,
                "rows": one.rows,
                "columns": one.columns,
                "cells": [[None if cell is None else place[id(cell)] for cell in row] for row in one.cells],
            }
            for one in found.matrices
        ],
        "curves": [
            {
                "organism": one.name,
                "base": one.base,
                "what": one.what,
                "at": one.at,
                "runs": [cell.label for cell in one.cells],
            }
            for one in found.curves
        ],
        "differences": [asdict(one) for one in found.differences],
        "no_differences": found.no_differences,
        "overlap": None if found.overlap is None else asdict(found.overlap),
        "family": found.family,
        "apart": found.apart,
        "warnings": found.warnings,
        "settings": found.settings,
        "created": found.created,
        "command": found.command,
    }


def _run(cell: Cell) -> dict[str, Any]:
    one, nulls = cell.estimate, cell.reading.nulls
    return {
        "label": cell.label,
        "base": cell.base,
        "organism": cell.organism,
        "variant": cell.variant,
        "key": cell.key,
        "folder": cell.folder,
        "created": cell.created,
        "value": one.value,
        "unit": one.unit,
        "n": one.n,
        "clusters": one.clusters,
        "low": one.low,
        "high": one.high,
        "floor": cell.reading.floor,
        "below_floor": cell.reading.below_floor,
        "nulls": None if nulls is None else asdict(nulls),
        "word": cell.word,
        "reason": cell.reason,
        "verdict_on": cell.where,
        "verdicts": {name: asdict(verdict) for name, verdict in cell.verdicts.items()},
    }


def render_comparison(found: Comparison) -> str:
    """The page as a string. The same comparison gives the same bytes."""
    drawn = [(f"figure-{number}", figure) for number, figure in enumerate(figures(found))]
    data = {slug(name): untitled(draw(figure)) for name, figure in drawn}
    scripts = [*([plotly_js()] if data else []), asset("report.js")]
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            c=found,
            slice=found.slice or ALL_SLICES,
            figures=drawn,
            shown=most_certain(found.differences),
            css=Markup(asset("report.css")),
            policy=Markup(policy(scripts)),
            scripts=[Markup(source) for source in scripts],
            data=Markup(script_json({"figures": data, "themes": THEMES})) if data else None,
            words=words,
            view=view,
            ratio=ratio,
        )
        + "\n"
    )


def ratio(cell: Cell) -> str:
    """How many times the nulls, and on which slice if the cell is of all."""
    if cell.verdict is None or cell.verdict.ratio is None:
        return ""
    return words.times(cell.verdict.ratio)


def most_certain(found: Sequence[Difference]) -> list[Difference]:
    return sorted(found, key=lambda one: (1.0 if one.p is None else one.p, -abs(one.value)))[:SHOWN]


def figures(found: Comparison) -> list[Figure]:
    """One of each matrix, one of each dial, and the tokens in common."""
    made = [_figure(found, one) for one in found.matrices if len(one.rows) > 1 or len(one.columns) > 1]
    kinds = dict.fromkeys((one.what, one.base) for one in found.curves)
    made += [_curves(found, [one for one in found.curves if (one.what, one.base) == kind]) for kind in kinds]
    if found.overlap is not None:
        made.append(_overlap(found))
    return made


def _figure(found: Comparison, matrix: Matrix) -> Figure:
    """A dot with its interval for every cell, the nulls beside."""
    # Fewer names along the axis than in the key: the longer side of the matrix is the axis.
    turned = len(matrix.columns) > len(matrix.rows)
    rows, columns = (matrix.columns, matrix.rows) if turned else (matrix.rows, matrix.columns)
    grid = (
        [list(column) for column in zip(*matrix.cells, strict=True)]
        if turned
        else [list(r) for r in matrix.cells]
    )
    if len(columns) > 7:
        values = tuple(tuple(None if c is None else c.reading.value for c in row) for row in grid)
        note = "Empty: no run, or no data. The table has the intervals."
        return Figure(f"matrix-{matrix.title}", matrix.title, Heatmap(columns, rows, values), "", "", note)
    series = [_series(name, rows, [row[i] for row in grid]) for i, name in enumerate(columns)]
    if (nulls := _nulls_by_row(rows, grid)) is not None:
        series.insert(0, nulls)
    return Figure(
        f"matrix-{matrix.title}",
        matrix.title,
        Scatter(tuple(series)),
        "",
        f"{found.number}, {found.unit}",
        "Intervals are 95%, over texts.",
        log_y=_wide([cell for row in grid for cell in row if cell is not None]),
    )


def _series(name: str, rows: Sequence[str], cells: Sequence[Cell | None]) -> Series:
    there = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell is not None]
    return Series(
        name,
        tuple(row for row, _ in there),
        tuple(cell.reading.value for _, cell in there),
        tuple(cell.estimate.low for _, cell in there),
        tuple(cell.estimate.high for _, cell in there),
    )


def _nulls_by_row(rows: Sequence[str], grid: Sequence[Sequence[Cell | None]]) -> Series | None:
    """The nulls' span beside each row, where all of a row's cells have the same nulls."""
    spans: list[tuple[str, NullRange]] = []
    for row, cells in zip(rows, grid, strict=True):
        ranges = {cell.reading.nulls for cell in cells if cell is not None}
        if len(ranges) == 1 and (span := next(iter(ranges))) is not None and span.low is not None:
            spans.append((row, span))
    if not spans:
        return None
    return Series(
        "nulls, smallest to largest",
        tuple(row for row, _ in spans),
        tuple(_middle(span) for _, span in spans),
        tuple(span.low for _, span in spans),
        tuple(span.high for _, span in spans),
    )


def _middle(span: NullRange) -> float | None:
    if span.low is None or span.high is None:
        return None
    return math.sqrt(span.low * span.high) if span.low > 0 else (span.low + span.high) / 2


def _wide(cells: Sequence[Cell]) -> bool:
    values = [cell.reading.value for cell in cells if cell.reading.value is not None]
    values += [
        end
        for cell in cells
        if (span := cell.reading.nulls)
        for end in (span.low, span.high)
        if end is not None
    ]
    return bool(values) and min(values) > 0 and max(values) > _WIDE * min(values)


def _curves(found: Comparison, curves: Sequence[Curve]) -> Figure:
    cells = [cell for one in curves for cell in one.cells]
    series = [
        Series(
            one.name,
            one.at,
            tuple(cell.reading.value for cell in one.cells),
            tuple(cell.estimate.low for cell in one.cells),
            tuple(cell.estimate.high for cell in one.cells),
        )
        for one in curves
    ]
    at = [number for one in curves for number in one.at]
    spans = {cell.reading.nulls for cell in cells}
    if len(spans) == 1 and (span := next(iter(spans))) is not None:
        ends = (min(at), max(at))
        series.append(
            Series(
                "nulls, smallest to largest", ends, (_middle(span),) * 2, (span.low,) * 2, (span.high,) * 2
            )
        )
    return Figure(
        f"curve-{curves[0].what}",
        f"{found.number} against {curves[0].what}, {curves[0].base}",
        Line(tuple(series)),
        curves[0].what,
        f"{found.number}, {found.unit}",
        "Bands are 95%, over texts. Each point is one training: what another training of the same would give is not in them.",
        log_x=min(at) > 0 and max(at) > _WIDE_X * min(at),
        log_y=_wide(cells),
    )


def _overlap(found: Comparison) -> Figure:
    one = found.overlap
    if one is None:
        raise ValueError("there is no overlap to draw")
    beside = "No nulls are there to compare with."
    if one.nulls is not None:
        beside = (
            f"With the nulls here they share {words.percent(one.nulls[0])} to {words.percent(one.nulls[1])}."
        )
    return Figure(
        "overlap",
        f"Most promoted tokens in common, of {one.top}",
        Heatmap(one.names, one.names, one.shares),
        "",
        "",
        f"Share of the {one.top} most promoted tokens that two runs have in common. Lists drawn by chance would share "
        f"{words.percent(one.expected)}; any two fine-tunes may share more, because harmless training promotes common tokens. "
        f"{beside}",
    )


def as_text(found: Comparison) -> str:
    """The matrices as lines of a terminal, with what a reader must know."""
    lines = [f"{found.method} {found.number}, {found.unit or 'no data'}, {found.slice or ALL_SLICES}", ""]
    for matrix in found.matrices:
        rows = [["", *matrix.columns]]
        for name, cells in zip(matrix.rows, matrix.cells, strict=True):
            rows.append([name, *("" if cell is None else _plain(cell) for cell in cells)])
        rows[0][0] = matrix.title if len(found.matrices) > 1 else ""
        lines += [aligned([[one_line(text) for text in row] for row in rows]), ""]
    for curve in found.curves:
        points = ", ".join(
            f"{at:g}: {words.value_of(cell.reading)}" for at, cell in zip(curve.at, curve.cells, strict=True)
        )
        lines.append(one_line(f"{curve.name} against {curve.what}: {points}"))
    lines += [f"Warning: {one_line(text)}" for text in (*found.apart, *found.warnings)]
    if found.family:
        lines.append(
            f"Change verdicts: Holm over {found.family} (every run on every slice); nulls: {_span(found.nulls)}."
        )
    if found.differences:
        sure = sum(one.q is not None and one.q <= 0.05 for one in found.differences)
        lines.append(
            f"Differences between runs: {sure} of {len(found.differences)} pairs at q <= 0.05 (Benjamini-Hochberg)."
        )
    else:
        lines.append(f"Differences between runs: none, as {found.no_differences}.")
    return "\n".join(lines)


def _span(counts: tuple[int, int]) -> str:
    return f"{counts[0]} each" if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"


def _plain(cell: Cell) -> str:
    parts = [words.value_of(cell.reading)]
    if not cell.reading.below_floor:
        parts.append(words.interval(cell.estimate.low, cell.estimate.high))
    parts += [ratio(cell), cell.word or ""]
    return " ".join(part for part in parts if part)
