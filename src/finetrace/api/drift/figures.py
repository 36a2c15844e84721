"""The figures of the experiment, as plain data: over the steps, at the end, and by layer and kind of matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from finetrace.core.page import Figure, Histogram, Line, Series
from finetrace.core.result import Columns
from finetrace.methods.neuron_drift.describe import curve_figure, map_figure
from finetrace.methods.neuron_drift.grouping import REPORTED
from finetrace.methods.neuron_drift.words import group

if TYPE_CHECKING:
    from finetrace.api.drift.analysis import Outcome

__all__ = ["figures"]


def figures(outcome: Outcome) -> list[Figure]:
    """Time series with bands over seeds, distributions at the last step, and the map."""
    band = (
        "Bands: 95% intervals of the mean over seeds." if outcome.analysis.seeds > 1 else "One seed: no band."
    )
    return [
        Figure(
            "drift_over_steps",
            "How far the groups moved",
            Line(_series(outcome.steps, "rms")),
            "step",
            "root mean square change",
            f"Adapted matrices only. {band} Groups lie in other rows and columns: not to be compared by eye.",
        ),
        Figure(
            "share_over_steps",
            "The same, over that of all weights of the same matrices",
            Line(_series(outcome.steps, "share")),
            "step",
            "times the matrix's own",
            f"Does not grow with the dose. {band}",
        ),
        curve_figure(outcome.analysis),
        _distributions(outcome),
        map_figure(outcome.analysis),
    ]


def _series(steps: Columns, key: str) -> tuple[Series, ...]:
    groups, at = list(steps.data["group"]), np.asarray(steps.data["step"])
    values = np.asarray(steps.data[key])
    found = []
    for name in (name for name in REPORTED if name in groups):
        mine = np.array([g == name for g in groups])
        xs = np.unique(at[mine])
        bands = [_band(values[mine & (at == x)]) for x in xs]
        mean, low, high = zip(*bands, strict=True)
        found.append(Series(group(name), tuple(float(x) for x in xs), mean, low, high))
    return tuple(found)


def _band(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Mean over seeds and its 95% interval; no interval from fewer than three."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None, None
    mean = float(values.mean())
    if len(values) < 3:
        return mean, None, None
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _distributions(outcome: Outcome) -> Figure:
    counts = tuple((group(name), _shares(n)) for name, n in outcome.sizes.items() if n.sum())
    return Figure(
        "final_distributions",
        "Changes of single weights at the end",
        Histogram(tuple(float(edge) for edge in outcome.edges), counts),
        "absolute change",
        "share of the group, %",
        "Adapted weights of all seeds. The lowest bin holds all that is smaller still.",
        log_x=True,
    )


def _shares(counts: np.ndarray) -> tuple[float, ...]:
    return tuple((100 * counts / counts.sum()).tolist())
