"""What a finished fine-tune did to the groups: drift rows, matched pairs, and seed 003's own figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.methods.neuron_drift.analysis import RANDOM, SAFETY_TOP, UTILITY_TOP, Pairs
from finetrace.methods.neuron_drift.tables import ALL, COLUMNS, layer_of
from finetrace.stats import seed003_cohens_d, seed003_rule, seed003_summary
from finetrace.stats.seed003 import Seed003Summary
from finetrace.weights.controls import Matched
from finetrace.weights.delta import Delta
from finetrace.weights.drift import group_drift
from finetrace.weights.groups import Group

Weight = Callable[[str], Tensor]
Deltas = Mapping[str, Delta]


def drift_rows(
    changes: Deltas, weight: Weight, groups: Mapping[str, Group], *, seed: int = 0, step: int = 0
) -> Columns:
    """One row a group and changed matrix, and group "all" for each of them. Matrices without a change have none."""
    rows = []
    for module, delta in changes.items():
        base, layer = weight(module), layer_of(module)
        cells = [(ALL, None, None)]
        cells += [
            (name, *group.rows_columns(module, delta.shape))
            for name, group in groups.items()
            if len(group.of(module))
        ]
        for name, places, columns in cells:
            found = group_drift(delta, base, places, columns, name)
            dot = math.nan if found.dot is None else found.dot
            rows.append((seed, step, name, module, layer, found.n, found.square, found.weight_square, dot))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    kinds = (np.int64, np.int64, None, None, np.int64, np.int64, np.float64, np.float64, np.float64)
    return Columns(
        {
            name: list(values) if kind is None else np.array(values, kind)
            for name, values, kind in zip(COLUMNS, columns, kinds, strict=True)
        }
    )


def matched_pairs(found: Matched, changes: Sequence[Deltas]) -> Pairs:
    """Squared changes of matched places in changed matrices, one row a seed; `changes`: of each seed. Of whole rows, the mean
    over their entries. A pair's block is the column of its treated entry."""
    modules = tuple(m for m in found.pairs if len(found.pairs[m]) and all(m in seed for seed in changes))
    treated, control, matrix, block = [], [], [], []
    for number, module in enumerate(modules):
        pairs, unit = found.pairs[module], found.treated.unit
        treated.append(np.stack([_squares(seed[module], pairs[:, 0], unit) for seed in changes]))
        control.append(np.stack([_squares(seed[module], pairs[:, 1], unit) for seed in changes]))
        matrix.append(np.full(len(pairs), number, np.int64))
        columns = pairs[:, 0] % changes[0][module].shape[1] if unit == "entries" else pairs[:, 0]
        block.append(columns.cpu().numpy())
    if not modules:
        nothing = np.zeros((len(changes), 0))
        return Pairs(nothing, nothing, np.zeros(0, np.int64), np.zeros(0, np.int64), ())
    return Pairs(
        np.concatenate(treated, axis=1),
        np.concatenate(control, axis=1),
        np.concatenate(matrix),
        np.concatenate(block),
        modules,
    )


def _squares(delta: Delta, places: Tensor, unit: str) -> np.ndarray:
    if unit == "rows":
        return (delta.row_squares()[places] / delta.shape[1]).cpu().numpy()
    rows, columns = places // delta.shape[1], places % delta.shape[1]
    return delta.entries(rows, columns).double().square().cpu().numpy()


def entry_table(
    changes: Deltas, weight: Weight, group: Group, shapes: Mapping[str, tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(change, weight) of every single weight of a group, a change being 0 in matrices that are not adapted."""
    moved, own = [], []
    for module, ids in group.places.items():
        if len(ids):
            rows, columns = _entries(group, module, shapes[module])
            base = weight(module)
            own.append(base[rows, columns].double().cpu())
            delta = changes.get(module)
            moved.append(
                torch.zeros(len(rows), dtype=torch.float64)
                if delta is None
                else delta.entries(rows, columns).double().cpu()
            )
    if not moved:
        return np.zeros(0), np.zeros(0)
    return torch.cat(moved).numpy(), torch.cat(own).numpy()


def _entries(group: Group, module: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    rows, columns = group.rows_columns(module, shape)
    if columns is not None:
        return rows, columns
    return rows.repeat_interleave(shape[1]), torch.arange(shape[1]).repeat(len(rows))


def seed003_table(
    changes: Deltas,
    weight: Weight,
    groups: Mapping[str, Group],
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
) -> tuple[Columns, str | None]:
    """Seed 003's figures of the groups `names`, d against the utility group, and what its rule concludes."""
    found: dict[str, Seed003Summary] = {}
    for name in names:
        summary = seed003_summary(*entry_table(changes, weight, groups[name], shapes))
        if summary is not None:
            found[name] = summary
    baseline = found.get(UTILITY_TOP)
    d = [
        None if baseline is None else seed003_cohens_d(one.mean, one.sd, baseline.mean, baseline.sd)
        for one in found.values()
    ]
    fields = ("mean", "sd", "median", "upper_quartile", "largest", "relative_mean", "relative_largest")
    table = {
        "group": list(found),
        "entries": np.array([one.n for one in found.values()], np.int64),
        **{key: np.array([getattr(one, key) for one in found.values()], np.float64) for key in fields},
        "d": np.array([math.nan if value is None else value for value in d], np.float64),
    }
    sides = (found.get(SAFETY_TOP), found.get(RANDOM))
    rule = None if sides[0] is None or sides[1] is None else seed003_rule(sides[0], sides[1])
    return Columns(table), rule
