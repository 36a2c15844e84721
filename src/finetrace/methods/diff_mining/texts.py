"""Per-text sums, from which the headline figures and their intervals come: the one thing that grows with the corpus."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from finetrace.engine import Step

SUMS = ("promotion", "suppression")
_NOTHING = {
    "key": torch.zeros(0, dtype=torch.int64),
    "row": torch.zeros(0, dtype=torch.int64),
    "slice": torch.zeros(0, dtype=torch.int64),
    "counts": torch.zeros(0, dtype=torch.int64),
    "sums": torch.zeros(0, len(SUMS), dtype=torch.float64),
}


class Texts:
    """Rows in the order seen, some 50 bytes each; `columns` sorts them by content."""

    def __init__(self) -> None:
        self._tables: list[dict[str, Tensor]] = []

    def add(self, step: Step, sums: Tensor, counts: Tensor) -> None:
        """sums: float64 [batch, SUMS]; counts: positions, int64 [batch]."""
        key = torch.from_numpy(step.key.view(np.int64).copy())
        self._tables.append(
            {"key": key, "row": step.row.cpu(), "slice": step.slice.cpu(), "counts": counts, "sums": sums}
        )

    def merge(self, later: Self) -> None:
        self._tables += later._tables

    def _whole(self) -> dict[str, Tensor]:
        return {
            name: torch.cat([empty, *(t[name] for t in self._tables)]) for name, empty in _NOTHING.items()
        }

    def state(self) -> dict[str, Tensor]:
        return {f"texts.{name}": column for name, column in self._whole().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._tables = [{name: state[f"texts.{name}"] for name in _NOTHING}]

    def columns(self) -> dict[str, np.ndarray]:
        """key: uint64; row, slice, counts: int64 [text]; sums: float64 [text, SUMS]. By content: the corpus order moves
        nothing."""
        found = {name: column.numpy() for name, column in self._whole().items()}
        found["key"] = found["key"].view(np.uint64)
        order = np.lexsort((found["row"], found["key"]))
        return {name: column[order] for name, column in found.items()}
