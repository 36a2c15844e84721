"""The texts at either end of each direction: a bounded list."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.engine import Step, Subject
from finetrace.methods.pca.result import Passage

# Tokens shown before and after the most extreme one.
_BEFORE, _AFTER = 32, 12


@dataclass(frozen=True)
class _Held:
    direction: int
    end: int
    value: float
    row: int
    slice: int
    ids: Tensor
    values: Tensor


class Ends:
    """Keeps, for each direction and end, the `keep` texts whose most extreme token lies furthest out, over all slices; ties
    go to the lower corpus row."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._held: list[_Held] = []

    def offer(self, step: Step, along: Float[Tensor, "batch pos direction"]) -> None:
        """along: the change along each direction, NaN where a token does not count."""
        if not self._keep:
            return
        for direction in range(along.shape[-1]):
            for end in (1, -1):
                signed = (end * along[..., direction]).nan_to_num(-torch.inf)
                furthest, peaks = signed.max(1)
                for i in furthest.argsort(descending=True, stable=True)[: self._keep].tolist():
                    if bool(furthest[i].isfinite()):
                        self._hold(step, i, (direction, end), int(peaks[i]), along[i, :, direction])
        self._trim()

    def _hold(self, step: Step, i: int, where: tuple[int, int], peak: int, values: Tensor) -> None:
        length = int(step.keep[i].sum()) + 1
        shown = slice(max(0, peak - _BEFORE), min(length, peak + _AFTER + 1))
        ids, near = step.ids[i, shown].cpu().clone(), values[shown].cpu().clone()
        self._held.append(_Held(*where, float(values[peak]), int(step.row[i]), int(step.slice[i]), ids, near))

    def _trim(self) -> None:
        self._held.sort(key=lambda held: (held.direction, -held.end, -held.end * held.value, held.row))
        kept: list[_Held] = []
        for held in self._held:
            same = sum((one.direction, one.end) == (held.direction, held.end) for one in kept)
            if same < self._keep:
                kept.append(held)
        self._held = kept

    def spelled(self, subject: Subject) -> tuple[Passage, ...]:
        return tuple(
            Passage(
                direction=held.direction,
                end=held.end,
                slice=subject.slices[held.slice],
                row=held.row,
                value=held.value,
                tokens=subject.spell(held.ids.tolist()),
                values=tuple(None if v != v else v for v in held.values.tolist()),  # NaN: does not count
            )
            for held in self._held
        )
