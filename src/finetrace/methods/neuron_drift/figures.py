"""How far each group moved, by itself: sums over adapted matrices, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from finetrace.core.result import Columns
from finetrace.methods.neuron_drift.result import GroupFigures
from finetrace.methods.neuron_drift.tables import ALL, Grid
from finetrace.weights.drift import one_minus_cosine


def figures(found: Grid, name: str, size: Mapping[str, int]) -> GroupFigures:
    moved = {module for module, here in zip(found.modules, found.adapted, strict=True) if here}
    held = {module: n for module, n in size.items() if n}
    values = _at(found, name, -1) if found.steps else (None,) * 4
    return GroupFigures(
        name,
        entries=sum(held.values()),
        adapted=sum(n for module, n in held.items() if module in moved),
        matrices=sum(module in moved for module in held),
        l2=values[0],
        relative=values[1],
        one_minus_cosine=values[2],
        rms_share=values[3],
    )


def _at(found: Grid, name: str, step: int) -> tuple[float | None, ...]:
    """L2, relative, 1 - cosine and RMS share of a group at a step, over adapted matrices, averaged over seeds."""
    at, everything = found.group(name), found.group(ALL)
    if at is None:
        return (None,) * 4
    here = found.adapted & (found.n[at] > 0) & np.isfinite(found.square[:, step, at]).all(axis=0)
    if not here.any():
        return (None,) * 4
    square = found.square[:, step, at][:, here].sum(axis=1)
    weight = float(found.weight_square[at, here].sum())
    dot = found.dot[:, step, at][:, here].sum(axis=1)
    share = None
    if everything is not None:
        typical = found.square[:, step, everything][:, here] / found.n[everything, here]
        expected = (typical * found.n[at, here]).sum(axis=1)
        share = _mean(
            np.sqrt(np.divide(square, expected, out=np.full_like(square, np.nan), where=expected > 0))
        )
    relative = _mean(np.sqrt(square / weight)) if weight > 0 else None
    return _mean(np.sqrt(square)), relative, _mean(_turned(square, weight, dot)), share


def _turned(square: np.ndarray, weight: float, dot: np.ndarray) -> np.ndarray:
    """1 - cosine of each seed; NaN where it has no meaning or the dot was not kept."""
    own = torch.full((len(square),), weight, dtype=torch.float64)
    return one_minus_cosine(torch.from_numpy(square), torch.from_numpy(dot), own).numpy()


def _mean(values: np.ndarray) -> float | None:
    """Over seeds; None where any has no value."""
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None


def steps(found: Grid, groups: Sequence[str]) -> Columns:
    keys = [(i, name) for i in range(len(found.steps)) for name in groups]
    values = np.array(
        [[math.nan if v is None else v for v in _at(found, name, i)] for i, name in keys]
    ).reshape(-1, 4)
    return Columns(
        {
            "step": np.array([found.steps[i] for i, _ in keys], np.int64),
            "group": [name for _, name in keys],
            **{
                key: values[:, k] for k, key in enumerate(("l2", "relative", "one_minus_cosine", "rms_share"))
            },
        }
    )
