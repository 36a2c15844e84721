"""Drift rows as arrays: seed x step x group x matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetrace.core.errors import BadInput
from finetrace.core.result import Columns

ALL = "all"
"""The group of every weight of a matrix: what the others are put beside."""
COLUMNS = ("seed", "step", "group", "module", "layer", "n", "square", "weight_square", "dot")
Sizes = Mapping[str, Mapping[str, int]]
"""Group -> matrix -> how many single weights, in every matrix, adapted or not."""


@dataclass(frozen=True, eq=False)
class Grid:
    """square, dot: float64 [seed, step, group, matrix]; weight_square, n: [group, matrix]. NaN (n: 0) where there is no row.

    adapted: bool [matrix], whether the fine-tune moved anything in it, at any step of any seed. steps: those that every
    seed has and that anything had moved by.
    """

    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    groups: tuple[str, ...]
    modules: tuple[str, ...]
    layers: np.ndarray
    n: np.ndarray
    square: np.ndarray
    weight_square: np.ndarray
    dot: np.ndarray
    adapted: np.ndarray

    def group(self, name: str) -> int | None:
        return self.groups.index(name) if name in self.groups else None


def grid(rows: Columns) -> Grid:
    """The table of drift rows (`COLUMNS`) as arrays. A row that is there twice (a resumed training) counts once, the last."""
    lacking = [name for name in COLUMNS if name not in rows.data]
    if lacking:
        raise BadInput(f"The drift table lacks the columns {', '.join(lacking)}.")
    if not len(rows):
        raise BadInput(
            "The drift table has no rows: nothing was tracked, or the fine-tune changes no weight matrix."
        )
    names = {key: np.unique(np.asarray(rows.data[key]), return_inverse=True) for key in COLUMNS[:4]}
    (seeds, s), (steps, t), (groups, g), (modules, m) = (names[key] for key in COLUMNS[:4])
    shape = (len(seeds), len(steps), len(groups), len(modules))
    square, dot = np.full(shape, np.nan), np.full(shape, np.nan)
    square[s, t, g, m] = np.asarray(rows.data["square"], np.float64)
    dot[s, t, g, m] = np.asarray(rows.data["dot"], np.float64)
    n, weight = np.zeros(shape[2:], np.int64), np.full(shape[2:], np.nan)
    n[g, m] = np.asarray(rows.data["n"], np.int64)
    weight[g, m] = np.asarray(rows.data["weight_square"], np.float64)
    layers = np.zeros(len(modules), np.int64)
    layers[m] = np.asarray(rows.data["layer"], np.int64)
    seen = np.isfinite(square)
    kept = seen.any(axis=(2, 3)).all(axis=0) & (np.nan_to_num(square) > 0).any(axis=(0, 2, 3))
    return Grid(
        seeds=tuple(int(x) for x in seeds),
        steps=tuple(int(x) for x in steps[kept]),
        groups=tuple(str(x) for x in groups),
        modules=tuple(str(x) for x in modules),
        layers=layers,
        n=n,
        square=square[:, kept],
        weight_square=weight,
        dot=dot[:, kept],
        adapted=np.asarray((np.nan_to_num(square) > 0).any(axis=(0, 1, 2))),
    )


def stacked(tables: Sequence[Columns]) -> Columns:
    """Drift tables of several trainings, one under the other."""
    found: dict[str, np.ndarray | list[str]] = {}
    for name in COLUMNS:
        parts = [table.data[name] for table in tables]
        if name in ("group", "module"):
            found[name] = [str(text) for part in parts for text in part]
        else:
            found[name] = np.concatenate([np.asarray(part) for part in parts])
    return Columns(found)


def kind_of(module: str) -> str:
    """The kind of matrix: the last part of its name, such as "q_proj"."""
    return module.rpartition(".")[2]


def layer_of(module: str) -> int:
    """The first number in a matrix's name: its layer; -1 for none."""
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def counts(sizes: Sizes, found: Grid, groups: Sequence[str]) -> Columns:
    """Single weights of each group by layer, and how many of them lie in adapted matrices."""
    moved = {module for module, here in zip(found.modules, found.adapted, strict=True) if here}
    table: dict[tuple[str, int], list[int]] = {}
    for name in groups:
        for module, n in sizes.get(name, {}).items():
            cell = table.setdefault((name, layer_of(module)), [0, 0])
            cell[0] += n
            cell[1] += n if module in moved else 0
    keys = sorted(table, key=lambda key: (groups.index(key[0]), key[1]))
    return Columns(
        {
            "group": [name for name, _ in keys],
            "layer": np.array([layer for _, layer in keys], np.int64),
            "entries": np.array([table[key][0] for key in keys], np.int64),
            "adapted": np.array([table[key][1] for key in keys], np.int64),
        }
    )
