"""What `weight_spectrum` finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.weight_spectrum.figures import Change
from finetrace.methods.weight_spectrum.merged import Ranks
from finetrace.methods.weight_spectrum.readout import Direction
from finetrace.methods.weight_spectrum.removed import Removed

SLICE = "weights"
KEYS = (
    "relative_norm",
    "frobenius",
    "changed_matrices",
    "stable_rank",
    "effective_rank",
    "spectral_entropy",
    "top_layer_share",
    "removed_direction_share",
)


@dataclass(frozen=True)
class Totals:
    """Of the base, whatever the other side is. square: squared norm of all parameters; weights: how many numbers they
    are. matrices: of linear layers and experts, how many there are."""

    square: float
    weights: int
    matrices: int


@dataclass(frozen=True)
class Result:
    """What changed between the base and the other side, from their weights alone: exact, without texts.

    numbers, slices["weights"]: the same figures; see the README for each. modules: one row a changed matrix: module,
    layer (-1: in none), kind, role, rows, columns, frobenius, relative (to its own norm; NaN where that is 0 or unknown),
    rank (singular values above rounding, of those computed), stable_rank, effective_rank and entropy (of those; NaN where
    more were not computed, or there are none), top_share (of the squared
    change in the first direction). grid_square, grid_weight: squared norms of the change and of the base [kind, layer],
    of `kinds`, over all matrices of the blocks, changed or not. others: parameters that are no such matrix (embeddings,
    norms, biases): parameter, frobenius, relative. singular: of the changed matrices, the leading values [module, k] over
    the first one, NaN beyond a matrix's own. ranks: None for an adapter. removed: None where nothing that writes to the
    residual stream changed. directions: none where a direction was found removed.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    totals: Totals
    kinds: tuple[str, ...]
    grid_square: np.ndarray
    grid_weight: np.ndarray
    modules: Columns
    others: Columns
    singular: np.ndarray
    ranks: Ranks | None
    removed: Removed | None
    directions: tuple[Direction, ...]
    baseline: str


def numbers(
    changes: Sequence[Change], other_square: float, totals: Totals, layers: np.ndarray, found: Removed | None
) -> dict[str, Estimate]:
    """layers: squared change of every block [layer]. other_square: of all parameters that are no matrix of a layer."""
    inside = math.fsum(change.square for change in changes)
    square = inside + other_square
    top = math.fsum(change.top_square for change in changes)
    n = totals.weights
    blocks = float(layers.sum())
    values: dict[str, tuple[float | None, str]] = {
        "relative_norm": (
            math.sqrt(square / totals.square) if totals.square > 0 else None,
            "of the weights' norm",
        ),
        "frobenius": (math.sqrt(square), "weight units"),
        "changed_matrices": (float(len(changes)), f"of {totals.matrices} matrices"),
        "stable_rank": (inside / top if top > 0 else None, "directions"),
        "effective_rank": (_mean(changes, [c.effective_rank for c in changes]), "directions"),
        "spectral_entropy": (_mean(changes, [c.entropy for c in changes]), "nats"),
        "top_layer_share": (float(layers.max()) / blocks if blocks > 0 else None, "of the squared change"),
        "removed_direction_share": (
            None if found is None else max(found.explained, found.own),
            "of the writers' squared change",
        ),
    }
    return {
        key: Estimate(values[key][0], values[key][1], n if values[key][0] is not None else 0, None)
        for key in KEYS
    }


def _mean(changes: Sequence[Change], values: Sequence[float | None]) -> float | None:
    """Over the changed matrices, weighted by their squared change; None where one is unknown."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(changes):
        return None
    total = math.fsum(change.square for change in changes)
    return math.fsum(c.square * v for c, v in zip(changes, known, strict=True)) / total


def modules_table(changes: Sequence[Change]) -> Columns:
    return Columns(
        {
            "module": [c.place.module for c in changes],
            "layer": np.array([c.place.layer for c in changes], dtype=np.int64),
            "kind": [c.place.kind for c in changes],
            "role": [str(c.place.role) for c in changes],
            "rows": np.array([c.shape[0] for c in changes], dtype=np.int64),
            "columns": np.array([c.shape[1] for c in changes], dtype=np.int64),
            "frobenius": np.sqrt(np.array([c.square for c in changes], dtype=np.float64)),
            "relative": _floats([c.relative for c in changes]),
            "rank": np.array([c.rank for c in changes], dtype=np.int64),
            "stable_rank": _floats([c.stable_rank for c in changes]),
            "effective_rank": _floats([c.effective_rank for c in changes]),
            "entropy": _floats([c.entropy for c in changes]),
            "top_share": _floats([c.top_square / c.square for c in changes]),
        }
    )


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def singular_values(changes: Sequence[Change], width: int) -> np.ndarray:
    """Leading singular values over the first, [module, k], k at most `width`; NaN where a matrix has fewer."""
    longest = min(width, max((len(c.values) for c in changes), default=0))
    table = np.full((len(changes), longest), np.nan)
    for row, c in enumerate(changes):
        values = c.values[:longest].cpu().numpy()
        table[row, : len(values)] = values / values[0]
    return table
