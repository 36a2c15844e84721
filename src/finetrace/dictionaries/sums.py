"""Sums by text of what is said of each token, and figures that are ratios of them, with intervals over texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.reading import Tokens, portions
from finetrace.stats import ratio_replicates
from finetrace.stats.intervals import mean_interval

__all__ = ["Each", "Ratio", "TextSums", "nothing", "squares"]

Each = Callable[[Float[Tensor, "token d"], Float[Tensor, "token d"]], Float[Tensor, "token column"]]
"""Base and tuned states to what is summed of each token; the last column is 1."""


@dataclass(frozen=True)
class Ratio:
    """Column `above` over column `below`. positive: it cannot be below 0."""

    above: int
    below: int
    positive: bool = False


class TextSums:
    """By text, float64. latents: codes a token that `each` holds at once."""

    def __init__(self, each: Each, columns: int, latents: int) -> None:
        self._each, self._columns, self._latents = each, columns, latents
        self._keys: list[np.ndarray] = []
        self._slices: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []

    def see(self, some: Tokens) -> None:
        if not len(some):
            return
        total = torch.zeros(len(some.keys), self._columns, dtype=torch.float64, device=some.base.device)
        for part in portions(len(some), self._latents):
            total.index_add_(0, some.text[part], self._each(some.base[part], some.tuned[part]).double())
        sums = total.cpu().numpy()
        seen = sums[:, -1] > 0
        self._keys.append(some.keys[seen])
        self._slices.append(some.slices[seen])
        self._sums.append(sums[seen])

    def estimate(self, ratio: Ratio, unit: str, seed: int, where: int | None = None) -> Estimate:
        """Of a slice, or with None of all; without a value where nothing is below the line."""
        if not self._sums:
            return Estimate(None, unit, 0, 0)
        sums, keys = np.concatenate(self._sums), np.concatenate(self._keys)
        if where is not None:
            chosen = np.concatenate(self._slices) == where
            sums, keys = sums[chosen], keys[chosen]
        above, below = sums[:, ratio.above], sums[:, ratio.below]
        if not below.sum() > 0:
            return Estimate(None, unit, 0, 0)
        interval = mean_interval(above, below, keys, seed=seed, nonnegative=ratio.positive)
        low, high = (interval.low, interval.high) if interval else (None, None)
        n, texts = int(sums[:, -1].sum()), len(np.unique(keys))
        replicates = ratio_replicates(above, below, keys, seed=seed)
        return Estimate(float(above.sum() / below.sum()), unit, n, texts, low, high, replicates)


def nothing(units: Sequence[tuple[str, str]]) -> dict[str, Estimate]:
    """The figures of a card's keys where there are none."""
    return {key: Estimate(None, unit, 0, 0) for key, unit in units}


def squares(x: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    return x.square().sum(1)
