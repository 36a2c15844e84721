"""Directions as words, through both heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from finetrace.core.result import Columns
from finetrace.engine import Subject


class Reader:
    """The lens over the tokens that can be read: special and dead ones are left out, the others' mean is 0."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self._lens, self._tokens, self._words = subject.lens, tokens, subject.vocabulary
        self._columns = np.flatnonzero(~(self._words.special | self._words.dead))
        self.token_ids = self._words.ids[self._columns]

    def logits(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred logits, float32 [row, token], of directions [row, d_model] through the base's head and the other's. A
        direction is read at the size at which its entries' mean square is 1."""
        if not len(vectors):
            nothing = np.zeros((0, len(self._columns)), dtype=np.float32)
            return nothing, nothing
        size = np.sqrt(np.square(vectors).mean(-1, keepdims=True))
        unit = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        base, other = self._lens(torch.from_numpy(unit).float(), True)
        return self._centred(base), self._centred(other)

    def _centred(self, logits: torch.Tensor) -> np.ndarray:
        found = logits.numpy()[:, self._columns]
        return found - found.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)

    def table(self, ours: np.ndarray, theirs: np.ndarray, heads: Sequence[dict[str, object]]) -> Columns:
        """Both ends of each row of logits [row, token] that is not 0 throughout, as one table: what `heads` says of the row,
        then end, token, token_id, logit (along that end), other_rank."""
        rows: list[dict[str, object]] = []
        for head, logits, other in zip(heads, ours, theirs, strict=True):
            for end in (1, -1) if logits.any() else ():
                ranks = _ranks(end * other)
                for i in best(end * logits, self._tokens):
                    said = {"token": self._words.texts[self._columns[i]], "token_id": int(self.token_ids[i])}
                    rows.append(head | {"end": end} | said | _figures(end * logits[i], int(ranks[i])))
        names = [*(heads[0] if heads else ()), "end", "token", "token_id", "logit", "other_rank"]
        return Columns({name: _column([row[name] for row in rows]) for name in names})


def _figures(logit: np.floating, rank: int) -> dict[str, object]:
    return {"logit": float(logit), "other_rank": rank}


def _column(values: list[object]) -> np.ndarray | list[str]:
    texts = [value for value in values if isinstance(value, str)]
    return texts if texts else np.array(values)


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest values, largest first; among equals the lowest index."""
    return np.argsort(-values, kind="stable")[:count]


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the largest."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[best(values, len(values))] = np.arange(1, len(values) + 1)
    return ranks
