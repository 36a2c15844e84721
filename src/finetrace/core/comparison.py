"""One number of one method over many runs, as plain data: what the page, compare.json and the terminal show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetrace.core.estimate import Estimate
from finetrace.core.findings import Reading, SliceVerdict


@dataclass(frozen=True)
class Cell:
    """One run. base, organism, variant, key, folder, created: where it is and how it is called. label: its name among the
    others. reading: the number, with the noise floor and the nulls of the same settings. verdicts: slice -> change verdict,
    as in an audit but for the size of the family; empty where the number asks for none. word: what they come to, or the
    safety word of a measure; None where the number has neither. where: the slice that `verdict` is of."""

    base: str
    organism: str
    variant: str
    key: str
    folder: str
    created: str
    label: str
    reading: Reading
    verdicts: Mapping[str, SliceVerdict] = field(default_factory=dict)
    word: str | None = None
    where: str | None = None
    reason: str = ""

    @property
    def estimate(self) -> Estimate:
        return self.reading.estimate

    @property
    def verdict(self) -> SliceVerdict | None:
        return None if self.where is None else self.verdicts.get(self.where)


@dataclass(frozen=True)
class Matrix:
    """rows x columns; a cell is None where no run is there."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]


@dataclass(frozen=True)
class Curve:
    """One organism on one base, along something that was turned from variant to variant. at: the number for each cell, in
    order."""

    name: str
    base: str
    what: str
    at: tuple[float, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Difference:
    """second - first, of two runs that read the same texts. low, high: 95%, over texts, from paired replicates. p: of no
    difference; q: the same by Benjamini-Hochberg over all pairs. None: the replicates say nothing."""

    first: str
    second: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    q: float | None


@dataclass(frozen=True)
class Overlap:
    """Shares of the most promoted tokens that two runs have in common. names: rows and columns. expected: what lists drawn
    by chance would share. nulls: the smallest and the largest share between a run here and a null, None without nulls. The
    tokens themselves are not here: they may be of texts that are not to be shown."""

    names: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    top: int
    expected: float
    nulls: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """slice: None for all slices together. family: how many change verdicts were corrected for together. nulls: how many
    each cell had, smallest and largest. apart: what differs between the runs, where --anyway put them together all the same.
    warnings: what a reader must know. no_differences: why there are none. settings: the protocol that all share."""

    method: str
    version: int
    number: str
    unit: str
    slice: str | None
    by: str
    matrices: tuple[Matrix, ...]
    curves: tuple[Curve, ...] = ()
    differences: tuple[Difference, ...] = ()
    no_differences: str = ""
    overlap: Overlap | None = None
    family: int = 0
    nulls: tuple[int, int] = (0, 0)
    apart: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    command: str = ""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for matrix in self.matrices for row in matrix.cells for cell in row if cell)
