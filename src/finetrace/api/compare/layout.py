"""Cells put in rows and columns, and along what was turned from variant to variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finetrace.config.catalogue import dial
from finetrace.core.comparison import Cell, Curve, Matrix

BY = ("variant", "organism", "model", "dial")
DEFAULT = "default"


def matrices(cells: Sequence[Cell], by: str) -> tuple[Matrix, ...]:
    """variant: a matrix a base, organism x variant. organism: the same, turned. model: one matrix, organism and variant x
    base. dial: one a base and kind of dial, organism x setting; runs without one are in none."""
    if by == "model":
        return (_matrix("by base", [(_full(cell), cell.base, cell) for cell in cells]),)
    found = []
    for base in dict.fromkeys(cell.base for cell in cells):
        here = [cell for cell in cells if cell.base == base]
        if by == "dial":
            found += _by_dial(base, here)
        else:
            places = [(cell.organism, cell.variant, cell) for cell in here]
            if by == "organism":
                places = [(variant, organism, cell) for organism, variant, cell in places]
            found.append(_matrix(base, places))
    return tuple(found)


def _full(cell: Cell) -> str:
    return cell.organism if cell.variant == DEFAULT else f"{cell.organism} {cell.variant}"


def _by_dial(base: str, cells: Sequence[Cell]) -> list[Matrix]:
    kinds: dict[str, list[tuple[str, str, Cell]]] = {}
    for cell in cells:
        turned = turned_of(cell)
        if turned is not None:
            name, what, number = turned
            kinds.setdefault(what, []).append((name, f"{number:g}", cell))
    return [_matrix(f"{base}: {what}", places) for what, places in kinds.items()]


def turned_of(cell: Cell) -> tuple[str, str, float] | None:
    """Organism, what was turned and how far; of a checkpoint that was audited by its folder's name, the folder is the dial."""
    if (found := dial(cell.variant)) is not None:
        return cell.organism, *found
    if cell.variant == DEFAULT and (found := dial(cell.organism.rsplit("/", 1)[-1])) is not None:
        above = cell.organism.rpartition("/")[0]
        return above or "checkpoints", *found
    return None


def _matrix(title: str, places: Sequence[tuple[str, str, Cell]]) -> Matrix:
    """Runs of one row and column get rows of their own, told apart by their labels."""
    taken = Counter((row, column) for row, column, _ in places)
    at = {(cell.label if taken[row, column] > 1 else row, column): cell for row, column, cell in places}
    rows = sorted({row for row, _ in at}, key=order)
    columns = sorted({column for _, column in at}, key=order)
    return Matrix(
        title,
        tuple(rows),
        tuple(columns),
        tuple(tuple(at.get((row, column)) for column in columns) for row in rows),
    )


def order(name: str) -> tuple[bool, str, float, str]:
    """`default` first, then dials by what they turn and how far, then other names."""
    try:
        return (name != DEFAULT, "", float(name), name)
    except ValueError:
        what, number = dial(name) or ("~", 0.0)
    return (name != DEFAULT, what, number, name)


def curves(cells: Sequence[Cell]) -> tuple[Curve, ...]:
    """Organisms that were read at two settings of one dial or more."""
    found: dict[tuple[str, str, str], list[tuple[float, Cell]]] = {}
    for cell in cells:
        turned = turned_of(cell)
        if turned is not None and cell.reading.value is not None:
            name, what, number = turned
            found.setdefault((what, cell.base, name), []).append((number, cell))
    out = []
    for (what, base, name), points in sorted(found.items()):
        points.sort(key=lambda point: point[0])
        if len({number for number, _ in points}) > 1:
            at, turned_cells = zip(*points, strict=True)
            out.append(Curve(name, base, what, at, turned_cells))
    return tuple(out)
