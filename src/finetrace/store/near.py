"""Texts that are nearly the same: of each kind one is shown, which says how many it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

__all__ = ["ALIKE", "without_near_duplicates"]

ALIKE = 0.5
"""Two texts are near-duplicates where the Jaccard index of their sets of tokens in a row is at least this."""

T = TypeVar("T", bound=Any)


def without_near_duplicates(
    found: Iterable[T], gram: int, ids: Callable[[T], "Sequence[int] | np.ndarray"]
) -> list[T]:
    """Without those that are near-duplicates of an earlier one that stays, whose `folded` counts them. gram: tokens in a row; a
    text that is shorter is one gram."""
    kept: list[T] = []
    grams: list[set[bytes]] = []
    for one in found:
        own = _grams(np.asarray(ids(one), np.int64), gram)
        twin = next((i for i, other in enumerate(grams) if _alike(own, other)), None)
        if twin is None:
            kept.append(one)
            grams.append(own)
        else:
            kept[twin] = replace(kept[twin], folded=kept[twin].folded + 1)
    return kept


def _grams(ids: np.ndarray, gram: int) -> set[bytes]:
    data, width = ids.tobytes(), ids.itemsize
    return {data[width * i : width * (i + gram)] for i in range(max(1, len(ids) - gram + 1))}


def _alike(one: set[bytes], other: set[bytes]) -> bool:
    shared = len(one & other)
    return shared >= ALIKE * (len(one) + len(other) - shared)
