"""Findings as the template wants them: strings, shares of colour, and groups of blocks, decided here and not there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetrace.core.findings import Finding, Findings, Reading
from finetrace.core.page import Block, Cell, Figure, Number, Page, Passage, Table, Warning
from finetrace.drawing.text import Part, token_parts
from finetrace.report import headline, words

_HASH = re.compile(r"^(sha256:)?[0-9a-f]{12,}$")
_ARXIV = re.compile(r"^\d{4}\.\d{4,5}(v\d+)?$")
# "Do this: finetrace audit ..." or the bare command; a sentence that only starts with the name is none.
_COMMAND = re.compile(r"^(?:(.*:)\s)?((?:finetrace|python|pip) [a-z-].*)$", re.DOTALL)


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    unit: str
    interval: str
    counts: str
    help: str


@dataclass(frozen=True)
class Token:
    """share: how strongly to colour it, from 0 to 1; negative: in the other colour; tip: its value in words."""

    parts: tuple[Part, ...]
    share: float
    negative: bool
    scored: bool
    newline: bool
    tip: str


@dataclass(frozen=True)
class Reader:
    """A passage for a reader. full: the value at which the colour is full; signed: whether there are two colours."""

    title: str
    note: str
    slice: str
    unit: str
    full: str
    signed: bool
    tokens: tuple[Token, ...]

    @property
    def scale(self) -> tuple[str, str, bool]:
        """What the legend says: neighbours with the same one share it."""
        return (self.unit, self.full, self.signed)


@dataclass(frozen=True)
class Group:
    """Blocks of one kind in a row: "tiles", "table", "figure", "passage" or "warning"."""

    kind: str
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Drawn:
    """A figure's place in the page; its data is embedded once, under the same id."""

    id: str
    figure: Figure


@dataclass(frozen=True)
class Line:
    """One line of the protocol. mono: a hash or a command; long: gets a line of its own."""

    name: str
    value: str
    mono: bool


def groups(finding: Finding) -> tuple[Group, ...]:
    """A page's blocks in reading order, neighbours of one kind together."""
    scales = _scales(finding.page)
    out: list[Group] = []
    for i, block in enumerate(finding.page.blocks):
        kind, item = _item(block, f"{finding.method}-{i}", finding, scales)
        if out and out[-1].kind == kind and kind in ("tiles", "warning", "passage"):
            out[-1] = Group(kind, (*out[-1].items, item))
        else:
            out.append(Group(kind, (item,)))
    return tuple(out)


def _item(block: Block, name: str, finding: Finding, scales: Mapping[str, float]) -> tuple[str, Any]:
    if isinstance(block, Number):
        return "tiles", _tile(block, finding)
    if isinstance(block, Table):
        return "table", block
    if isinstance(block, Figure):
        return "figure", Drawn(f"figure-{name}", block)
    if isinstance(block, Passage):
        return "passage", _reader(block, scales)
    return "warning", block.text


def warnings(finding: Finding) -> tuple[str, ...]:
    """Those of the finding, then those of its page, each once."""
    page = [b.text for b in finding.page.blocks if isinstance(b, Warning)]
    return tuple(dict.fromkeys([*finding.warnings, *page]))


def unsaid(finding: Finding) -> tuple[str, ...]:
    """The finding's warnings that are not blocks of its page."""
    page = {b.text for b in finding.page.blocks if isinstance(b, Warning)}
    return tuple(text for text in finding.warnings if text not in page)


def _tile(block: Number, finding: Finding) -> Tile:
    reading = finding.numbers.get(block.key)
    if reading is None or reading.value != block.estimate.value:
        reading = Reading(block.estimate)
    shown = block.estimate.value is not None and not reading.below_floor
    return Tile(
        label=block.label,
        value=words.value_of(reading),
        unit=block.estimate.unit if shown else "",
        interval=words.interval(block.estimate.low, block.estimate.high) if shown else "",
        counts=words.counts(block.estimate),
        help=block.help,
    )


def _scales(page: Page) -> dict[str, float]:
    """Unit -> the value of full colour: the 98th percentile over the page, so that one outlier does not pale the rest."""
    values: dict[str, list[float]] = {}
    for block in page.blocks:
        if isinstance(block, Passage):
            found = [abs(v) for v in block.values if v is not None and math.isfinite(v)]
            values.setdefault(block.unit, []).extend(found)
    return {unit: sorted(found)[int(0.98 * (len(found) - 1))] for unit, found in values.items() if found}


def _reader(block: Passage, scales: Mapping[str, float]) -> Reader:
    full = scales.get(block.unit, 0.0)
    pairs = zip(block.tokens, block.values, strict=True)
    tokens = tuple(_token(token, value, block.unit, full) for token, value in pairs)
    signed = any(v is not None and v < 0 for v in block.values)
    return Reader(block.title, block.note, block.slice, block.unit, words.number(full), signed, tokens)


def _token(token: str, value: float | None, unit: str, full: float) -> Token:
    parts = token_parts(token)
    scored = value is not None and math.isfinite(value)
    share = 0.0
    if value is not None and scored and full > 0:
        share = round(min(1.0, abs(value) / full), 2)
    tip = f"{words.number(value)} {unit}".strip() if scored else "not scored"
    return Token(parts, share, value is not None and value < 0, scored, token.endswith("\n"), tip)


def cell(value: Cell, column: str) -> str:
    """A table cell as text; None is "no data", and ids are not grouped by thousands."""
    if value is None:
        return words.NO_DATA
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if "id" in re.split(r"[^a-z]+", column.lower()) else f"{value:,}"
    return words.number(value) if isinstance(value, float) else value


def numeric(table: Table) -> tuple[bool, ...]:
    """Whether each column holds figures: its head then stands at the right, as they do."""
    columns = zip(*table.rows, strict=True) if table.rows else ()
    return tuple(all(not isinstance(v, str) for v in column) for column in columns)


def lines(tree: Mapping[str, Any]) -> tuple[Line, ...]:
    """A nested mapping as lines `a.b.c`, value; hashes and commands are to be set in a monospaced face."""
    return tuple(_lines(tree, ""))


def _lines(tree: Mapping[str, Any], above: str) -> Iterator[Line]:
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _lines(value, f"{name}.")
        else:
            text = _text(value)
            yield Line(
                name, text, bool(_HASH.match(text)) or key in ("command", "hash", "run_key", "revision")
            )


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def paper(name: str) -> str:
    """A paper as text: a bare arXiv id says that it is one."""
    return f"arXiv:{name}" if _ARXIV.match(name) else name


def told(truth: Mapping[str, Any] | None) -> str:
    """What a truth manifest says of itself in a sentence."""
    found = truth or {}
    return str(found.get("description") or found.get("summary") or "")


def step(text: str) -> tuple[str, str]:
    """A next step as (sentence, command); either may be empty."""
    found = _COMMAND.match(text)
    return (found[1] or "", found[2]) if found else (text, "")


def expectations(findings: Findings) -> str:
    """How many of the expectations that were measured held."""
    measured = [e for e in findings.expected if e.held is not None]
    rest = len(findings.expected) - len(measured)
    text = f"{sum(bool(e.held) for e in measured)} of {len(measured)} held"
    return text + (f", {rest} not measured" if rest else "")


def all_figures(finding: Finding) -> tuple[tuple[str, dict[str, Reading]], ...]:
    """(slice, its readings), slice by slice, then all slices together."""
    return (*finding.slices.items(), (headline.ALL_SLICES, finding.numbers))
