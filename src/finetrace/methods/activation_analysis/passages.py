"""The texts that moved most: by their mean and by their largest token, a bounded list that merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.engine import Step, Subject

# A reader sees this much of a text at most; a longer one is shown around its largest value.
WINDOW = 160
# A mean over fewer tokens ranks by luck.
SHORTEST = 5

By = Literal["mean", "token"]
BY: tuple[By, ...] = ("mean", "token")


@dataclass(frozen=True)
class Passage:
    """One text. by: what it ranks by, its mean or its largest token; value: that figure. values: the relative norm at each
    token shown, None where there is none (the first token, which is apart, and the last, which predicts nothing)."""

    slice: str
    by: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class _Held:
    slice: int
    by: int
    value: float
    row: int
    ids: Tensor
    values: Tensor

    @property
    def order(self) -> tuple[int, int, float, int]:
        """Largest first within a slice and ranking; ties go to the lower corpus row."""
        return (self.slice, self.by, -self.value, self.row)


class Passages:
    """Keeps `keep` texts for each slice and ranking."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._held: list[_Held] = []

    def offer(self, step: Step, values: Float[Tensor, "batch pos"]) -> None:
        """values: NaN where a token is not in the figures; on the CPU."""
        scored = ~values.isnan()
        counts = scored.sum(1)
        means = values.nan_to_num(0.0).double().sum(1) / counts.clamp(min=1)
        largest = values.nan_to_num(-1.0).amax(1).double()
        floor = self._floor()
        lengths = (step.keep.sum(1) + 1).tolist()
        for i in counts.nonzero()[:, 0].tolist():
            where, row = int(step.slice[i]), int(step.row[i])
            for by, value in enumerate((float(means[i]), float(largest[i]))):
                enough = BY[by] == "token" or counts[i] >= SHORTEST
                if enough and value > 0 and value >= floor.get((where, by), 0.0):
                    ids, shown = _window(step.ids[i, : lengths[i]].cpu(), values[i, : lengths[i]])
                    self._held.append(_Held(where, by, value, row, ids, shown))
        self._trim()

    def _floor(self) -> dict[tuple[int, int], float]:
        """The smallest value kept by each list that is full."""
        found: dict[tuple[int, int], list[float]] = {}
        for held in self._held:
            found.setdefault((held.slice, held.by), []).append(held.value)
        return {which: min(values) for which, values in found.items() if len(values) >= self._keep}

    def merge(self, later: Passages) -> None:
        self._held = self._held + later._held
        self._trim()

    def _trim(self) -> None:
        ranks: dict[tuple[int, int], int] = {}
        kept = []
        for held in sorted(self._held, key=lambda one: one.order):
            which = (held.slice, held.by)
            ranks[which] = ranks.get(which, 0) + 1
            if ranks[which] <= self._keep:
                kept.append(held)
        self._held = kept

    def state(self) -> dict[str, Tensor]:
        whole = [(h.slice, h.by, h.row, len(h.ids)) for h in self._held]
        return {
            "head": torch.tensor(whole, dtype=torch.int64).reshape(-1, 4),
            "value": torch.tensor([h.value for h in self._held], dtype=torch.float64),
            "ids": torch.cat([torch.zeros(0, dtype=torch.int64), *(h.ids for h in self._held)]),
            "values": torch.cat([torch.zeros(0), *(h.values for h in self._held)]),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        lengths = state["head"][:, 3].tolist()
        parts = zip(
            state["head"].tolist(),
            state["value"].tolist(),
            state["ids"].split(lengths),
            state["values"].split(lengths),
            strict=True,
        )
        self._held = [
            _Held(where, by, value, row, ids, values) for (where, by, row, _), value, ids, values in parts
        ]

    def spelled(self, subject: Subject) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                slice=subject.slices[held.slice],
                by=BY[held.by],
                row=held.row,
                value=held.value,
                tokens=subject.spell(held.ids.tolist()),
                values=tuple(None if v != v else v for v in held.values.tolist()),  # NaN: not scored
            )
            for held in self._held
        )


def _window(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """At most WINDOW tokens, around the largest value."""
    start = 0
    if len(ids) > WINDOW:
        peak = int(values.nan_to_num(-1.0).argmax())
        start = min(max(0, peak - WINDOW // 2), len(ids) - WINDOW)
    return ids[start : start + WINDOW].clone(), values[start : start + WINDOW].clone()
