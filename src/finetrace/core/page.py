"""A result put for a reader, as plain data: drawn by whoever shows it (report, dashboard, agent)."""

from __future__ import annotations

from dataclasses import dataclass

from finetrace.core.estimate import Estimate

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Number:
    """A headline figure. `key` is stable and the one used in report.json."""

    key: str
    label: str
    estimate: Estimate
    help: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; a column called `token` holds decoded text."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One named run of points; low and high bound a band or error bars."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Line:
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Bars:
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Scatter:
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Histogram:
    """Counts between consecutive edges; `series` name -> counts, len(edges) - 1 each."""

    edges: tuple[float, ...]
    counts: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Heatmap:
    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A plot with axis labels (with units) and a sentence that says how to read it. spells: its labels are words of the
    texts, or tokens that rose on them; it is left out where some texts are not to be shown."""

    key: str
    title: str
    plot: Line | Bars | Scatter | Histogram | Heatmap
    x_label: str = ""
    y_label: str = ""
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    spells: bool = False


@dataclass(frozen=True)
class Passage:
    """A text with one value per token (None: not scored). `slice` decides whether a report may show it."""

    title: str
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    unit: str = ""
    slice: str = ""
    note: str = ""


@dataclass(frozen=True)
class Warning:
    """Something that a reader must know before trusting the numbers beside it."""

    text: str


Block = Number | Table | Figure | Passage | Warning


@dataclass(frozen=True)
class Page:
    """One method's findings, in reading order."""

    title: str
    summary: str
    blocks: tuple[Block, ...] = ()
