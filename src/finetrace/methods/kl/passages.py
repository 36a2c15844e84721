"""The most changed passages of each slice: a bounded list that merges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetrace.engine import Step, Subject

# A reader sees this much of a passage at most; a longer one is shown around its largest value.
WINDOW = 160
# Means over fewer tokens than this rank by luck.
SHORTEST = 5


@dataclass(frozen=True)
class Passage:
    """One text. mean: its mean KL(tuned || base), nats per token. values: KL of the prediction *of* each token shown
    (made one position before it), None where none was made (the first token)."""

    slice: str
    row: int
    mean: float
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


class Passages:
    """Keeps the `keep` rows of largest mean per slice; ties go to the lower corpus row."""

    def __init__(self, keep: int, slices: int) -> None:
        self._keep, self._slices = keep, slices
        self._held: list[tuple[int, float, int, Tensor, Tensor]] = []  # slice, mean, row, ids, values

    def offer(self, step: Step, means: Tensor, values: Tensor) -> None:
        lengths = step.keep.sum(1) + 1
        for i in range(len(means)):
            length = int(lengths[i])
            if length > SHORTEST:
                ids, scored = step.ids[i, :length], values[i, : length - 1]
                self._held.append(
                    (int(step.slice[i]), float(means[i]), int(step.row[i]), *_window(ids, scored))
                )
        self._trim()

    def merge(self, later: Passages) -> None:
        self._held += later._held
        self._trim()

    def _trim(self) -> None:
        self._held.sort(key=lambda held: (held[0], -held[1], held[2]))
        ranks = [0] * self._slices
        kept = []
        for held in self._held:
            ranks[held[0]] += 1
            if ranks[held[0]] <= self._keep:
                kept.append(held)
        self._held = kept

    def state(self) -> dict[str, Tensor]:
        nothing = torch.zeros(0, dtype=torch.int64)
        return {
            "passage.slice": torch.tensor([h[0] for h in self._held], dtype=torch.int64),
            "passage.mean": torch.tensor([h[1] for h in self._held], dtype=torch.float64),
            "passage.row": torch.tensor([h[2] for h in self._held], dtype=torch.int64),
            "passage.length": torch.tensor([len(h[3]) for h in self._held], dtype=torch.int64),
            "passage.ids": torch.cat([h[3] for h in self._held]) if self._held else nothing,
            "passage.values": torch.cat([h[4] for h in self._held]) if self._held else nothing.float(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        lengths = state["passage.length"].tolist()
        ids, values = state["passage.ids"].split(lengths), state["passage.values"].split(lengths)
        heads = zip(
            state["passage.slice"].tolist(),
            state["passage.mean"].tolist(),
            state["passage.row"].tolist(),
            strict=True,
        )
        self._held = [(*head, i, v) for head, i, v in zip(heads, ids, values, strict=True)]

    def spelled(self, subject: Subject) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                slice=subject.slices[where],
                row=row,
                mean=mean,
                tokens=subject.spell(ids.tolist()),
                values=tuple(None if v != v else v for v in values.tolist()),  # NaN: not scored
            )
            for where, mean, row, ids, values in self._held
        )


def _window(ids: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and the value of the prediction of each; at most WINDOW tokens, around the largest value."""
    values = torch.cat([scored.new_full((1,), torch.nan), scored])
    start = 0
    if len(ids) > WINDOW:
        peak = int(values.nan_to_num(-1.0).argmax())
        start = min(max(0, peak - WINDOW // 2), len(ids) - WINDOW)
    return ids[start : start + WINDOW].cpu().clone(), values[start : start + WINDOW].cpu().clone()
