"""Singular directions as words: what the most changed matrices write into the residual stream, or read out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetrace.engine import Subject
from finetrace.methods.weight_spectrum.figures import Change


@dataclass(frozen=True)
class Direction:
    """number: 1 for the largest singular value. share: of its module's squared change. role: "writes" (left singular
    vector, what the change adds to the residual stream) or "reads" (right one, what it answers to). one_end, other_end:
    the words that it points to and away from, the more telling end first: signs of singular vectors mean nothing."""

    module: str
    layer: int
    role: str
    number: int
    share: float
    one_end: tuple[str, ...]
    other_end: tuple[str, ...]


def directions(
    changes: Sequence[Change], subject: Subject, *, modules: int, count: int, tokens: int
) -> tuple[Direction, ...]:
    """The first `count` directions of the `modules` most changed matrices that write, and of as many that read, through
    the base's final norm and head. A layer's own norm before it is not undone: the words are a hint."""
    spots = [
        (change, number)
        for role in ("writes", "reads")
        for change in _most_changed(changes, role)[:modules]
        for number in range(min(count, len(change.values)))
    ]
    if not spots:
        return ()
    vectors = torch.stack([_vector(change, number) for change, number in spots]).float()
    logits, _ = subject.lens(vectors * vectors.shape[1] ** 0.5, True)
    words = subject.vocabulary
    seen = np.flatnonzero(~(words.special | words.dead))
    found = logits.numpy()[:, seen].astype(np.float64)
    found -= found.mean(-1, keepdims=True)
    texts = [words.texts[i] for i in seen]
    return tuple(
        _direction(change, number, row, texts, tokens)
        for (change, number), row in zip(spots, found, strict=True)
    )


def _most_changed(changes: Sequence[Change], role: str) -> list[Change]:
    """Of one role and inside the blocks, the largest change first."""
    found = [change for change in changes if change.place.role == role and change.place.layer >= 0]
    return sorted(found, key=lambda change: (-change.square, change.place.module))


def _vector(change: Change, number: int) -> torch.Tensor:
    side = change.spectrum.left if change.place.role == "writes" else change.spectrum.right
    return side[:, number].cpu()


def _direction(change: Change, number: int, row: np.ndarray, texts: list[str], count: int) -> Direction:
    """row: centred logits [token]."""
    ends = sorted((row, -row), key=lambda end: -float(np.sort(end)[-count:].sum()))
    top, bottom = (tuple(texts[i] for i in np.argsort(-end, kind="stable")[:count]) for end in ends)
    share = float(change.values[number]) ** 2 / change.square
    return Direction(
        change.place.module, change.place.layer, change.place.role, number + 1, min(1.0, share), top, bottom
    )
