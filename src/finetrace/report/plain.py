"""One method's page as plain text, for a reader without a browser: a model, or a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetrace.core.findings import Finding, Reading
from finetrace.core.page import Cell, Table
from finetrace.core.page import Warning as Caution
from finetrace.drawing.text import one_line, shorten, visible_token
from finetrace.report.words import interval, null_range, number, times, value_of

__all__ = ["plain_text"]

ROWS = 20
"""Rows of a table that are shown."""
WIDEST = 240
"""Characters of a cell."""


def plain_text(finding: Finding, *, prose: Callable[[str], str] = lambda text: text) -> str:
    """Verdicts, figures with their intervals, nulls and floor, warnings and tables. Figures that are drawn and texts with a
    value a token are left out. prose: applied to what is no cell of a table.

    Give findings that were redacted: nothing is held back here.
    """
    return "\n".join(_lines(finding, prose))


def _lines(finding: Finding, prose: Callable[[str], str]) -> Iterator[str]:
    yield prose(one_line(finding.page.title))
    yield prose(one_line(finding.page.summary))
    if finding.change is not None:
        yield f"Change against benign fine-tunes: {finding.change}."
    for name, verdict in finding.verdicts.items():
        ratio = f", {times(verdict.ratio)} the nulls" if verdict.ratio is not None else ""
        yield f"- on slice {one_line(name)}: {verdict.change}{ratio}"
    for key, reading in finding.numbers.items():
        yield f"{key}: {_figure(reading)}"
    for where, readings in finding.slices.items():
        if finding.primary in readings:
            yield f"{finding.primary} on {one_line(where)}: {_figure(readings[finding.primary])}"
    for text in dict.fromkeys([*finding.warnings, *_cautions(finding)]):
        yield prose(f"Warning: {one_line(text)}")
    for block in finding.page.blocks:
        if isinstance(block, Table) and block.rows:
            yield ""
            yield from _table(block, prose)


def _cautions(finding: Finding) -> list[str]:
    return [block.text for block in finding.page.blocks if isinstance(block, Caution)]


def _figure(reading: Reading) -> str:
    one = reading.estimate
    parts = [f"{value_of(reading)} {one.unit} {interval(one.low, one.high)}".strip(), f"n={one.n}"]
    if reading.floor is not None:
        parts.append(f"noise floor {number(reading.floor)}")
    parts.append(f"nulls {null_range(reading.nulls)}")
    return ", ".join(parts)


def _table(table: Table, prose: Callable[[str], str]) -> Iterator[str]:
    left = len(table.rows) - ROWS
    yield prose(one_line(table.title))
    if table.note:
        yield prose(one_line(table.note))
    yield " | ".join(table.columns)
    for row in table.rows[:ROWS]:
        yield " | ".join(_cell(column, cell) for column, cell in zip(table.columns, row, strict=True))
    if left > 0:
        yield f"({left} more rows)"


def _cell(column: str, cell: Cell) -> str:
    if isinstance(cell, str):
        return visible_token(cell) if column == "token" else shorten(one_line(cell), WIDEST)
    if cell is None or isinstance(cell, bool):
        return "" if cell is None else str(cell).lower()
    return number(cell)
