"""Vectors as words: the mean difference, and the two models' mean states, through both heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetrace.core.result import Columns
from finetrace.engine import Subject
from finetrace.methods.activation_difference_lens.cells import Cell
from finetrace.stats.moderated import moderated, z_of_t


@dataclass(frozen=True)
class Reading:
    """What one place says at one layer. texts: how many the mean is over.

    promoted, suppressed: token, token_id, logit (through the base's head), z_noise (logit over its jackknife error, as a
    normal value), other_rank (place in the other head's order, 1 the first). base, tuned: the top tokens of either
    model's mean state through its own norm and head: token, token_id, logit. Logits are centred: the mean over all
    tokens that can be read is 0.
    """

    place: str
    layer: int
    texts: int
    promoted: Columns
    suppressed: Columns
    base: Columns
    tuned: Columns


@dataclass(frozen=True, eq=False)
class Spot:
    """A cell's mean difference at one layer that is to be read."""

    cell: Cell
    layer: int

    @property
    def moved(self) -> bool:
        """Whether there is a difference at all."""
        return bool(self.cell.sums[self.layer].any())

    @property
    def vectors(self) -> np.ndarray:
        """The sum over the groups [1 + groups with texts, d_model], then that without each of them."""
        sums = self.cell.sums[self.layer]
        total = sums.sum(0, keepdims=True)
        return np.concatenate([total, total - sums[self.cell.texts > 0]])

    @property
    def states(self) -> np.ndarray:
        """Mean states of the base and of the other model [2, d_model]."""
        base = self.cell.base[self.layer]
        return np.stack([base, base + self.cell.sums[self.layer].sum(0) / max(1, self.cell.texts.sum())])


class Reader:
    """The lens over the tokens that can be read: special and dead ones are left out, the others' mean is 0."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self._lens, self._tokens, self._words = subject.lens, tokens, subject.vocabulary
        self._columns = np.flatnonzero(~(self._words.special | self._words.dead))
        self.token_ids = self._words.ids[self._columns]

    def directions(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred logits, float32 [row, token], of directions [row, d_model] through the base's head and the other's. A
        direction is read at the size at which its entries' mean square is 1."""
        size = np.sqrt(np.square(vectors).mean(-1, keepdims=True))
        unit = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        base, other = self._lens(torch.from_numpy(unit).float(), True)
        return self._centred(base), self._centred(other)

    def read(self, vectors: np.ndarray, spots: Sequence[Spot]) -> tuple[np.ndarray, list[Reading | None]]:
        """Logits [row, token] of directions [row, d_model] through the base's head; and every spot's reading, None where
        nothing moved. Two calls of the lens in all: on a large vocabulary each has to be worth it."""
        moved = [spot for spot in spots if spot.moved]
        rows = [vectors, *(spot.vectors for spot in moved)]
        cuts = np.cumsum([len(row) for row in rows])[:-1]
        both = [np.split(logits, cuts) for logits in self.directions(np.concatenate(rows))]
        if not moved:
            return both[0][0], [None] * len(spots)
        states = torch.from_numpy(np.concatenate([spot.states for spot in moved])).float()
        base, tuned = (self._centred(side) for side in self._lens(states, False))
        parts = zip(moved, both[0][1:], both[1][1:], base[::2], tuned[1::2], strict=True)
        readings = iter([self._reading(*part) for part in parts])
        return both[0][0], [next(readings) if spot.moved else None for spot in spots]

    def _reading(
        self, spot: Spot, ours: np.ndarray, theirs: np.ndarray, base: np.ndarray, tuned: np.ndarray
    ) -> Reading:
        """ours, theirs [1 + groups, token]: logits of the spot's vectors through either head."""
        logits, z = ours[0], _z(ours[0], ours[1:])
        up, down = best(logits, self._tokens), best(-logits, self._tokens)
        return Reading(
            place=spot.cell.place,
            layer=spot.layer,
            texts=int(spot.cell.texts.sum()),
            promoted=self._table(up, logits, z_noise=z, other_rank=_ranks(theirs[0])),
            suppressed=self._table(down, logits, z_noise=z, other_rank=_ranks(-theirs[0])),
            base=self.top(base, self._tokens),
            tuned=self.top(tuned, self._tokens),
        )

    def top(self, logits: np.ndarray, count: int) -> Columns:
        """The `count` largest of centred logits [token]: token, token_id, logit."""
        return self._table(best(logits, count), logits)

    def _centred(self, logits: torch.Tensor) -> np.ndarray:
        found = logits.numpy()[:, self._columns]
        return found - found.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)

    def _table(self, rows: np.ndarray, logits: np.ndarray, **more: np.ndarray) -> Columns:
        columns: dict[str, np.ndarray | list[str]] = {
            "token": [self._words.texts[i] for i in self._columns[rows]],
            "token_id": self.token_ids[rows],
            "logit": logits[rows],
        }
        return Columns(columns | {name: values[rows] for name, values in more.items()})


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest values, largest first; among equals the lowest index."""
    return np.argsort(-values, kind="stable")[:count]


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the largest."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[best(values, len(values))] = np.arange(1, len(values) + 1)
    return ranks


def _z(logits: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Logits [token] over their error, from those [group, token] without each group of texts; NaN with fewer than two
    groups. The error is the delete-a-group jackknife's, its variance moderated over the tokens."""
    m = len(left_out)
    if m < 2:
        return np.full(len(logits), np.nan)
    variance = (m - 1) / m * np.square(left_out - left_out.mean(0)).sum(0, dtype=np.float64)
    steady = moderated(variance, m - 1)
    scale = np.sqrt(steady.variance)
    t = np.divide(logits, scale, out=np.full(len(logits), np.nan), where=scale > 0)
    return z_of_t(t, steady.dof)
