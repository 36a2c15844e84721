"""What the dictionary gives back of held-out texts: sums by text, and the figures that are ratios of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.reading import Tokens, portions
from finetrace.methods.sae_difference import KEYS
from finetrace.stats import ratio_replicates
from finetrace.stats.intervals import mean_interval

UNITS = dict(KEYS)
# Sums of a text, in this order.
ALONG, BASE, GAIN, SQUARE, INNER, REST, CODES, TOKENS = range(8)
RATIOS = {
    "explained_change": (ALONG, BASE),
    "explained_share": (GAIN, SQUARE),
    "latents_share": (INNER, REST),
    "codes_per_token": (CODES, TOKENS),
}
_NONNEGATIVE = ("explained_change", "codes_per_token")


@dataclass(eq=False)
class Sums:
    """By held-out text, float64. constant: [d], what is written at every token; the dictionary is None where that is all.

    ALONG: of the squared part of each change along what is written; BASE: of the base's states less their mean. GAIN: SQUARE, of the changes, less
    what is not given back; INNER: the same, of changes less the constant part (REST).
    """

    dictionary: Dictionary | None
    constant: Float[Tensor, " d"]
    base_mean: Float[Tensor, " d"]
    keys: list[np.ndarray] = field(default_factory=list)
    slices: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)

    def see(self, some: Tokens) -> None:
        if not len(some):
            return
        device = some.base.device
        total = torch.zeros(len(some.keys), 8, dtype=torch.float64, device=device)
        width = self.dictionary.latents if self.dictionary is not None else 1
        for part in portions(len(some), width):
            total.index_add_(0, some.text[part], self._token(some.base[part], some.tuned[part]).double())
        sums = total.cpu().numpy()
        seen = sums[:, TOKENS] > 0
        self.keys.append(some.keys[seen])
        self.slices.append(some.slices[seen])
        self.sums.append(sums[seen])

    def _token(self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"]) -> Tensor:
        change, constant = tuned - base, self.constant.to(base)
        written, count = constant.expand_as(change), torch.zeros(len(base), device=base.device)
        if self.dictionary is not None:
            codes = self.dictionary.codes(change[:, None])
            written, count = self.dictionary.decode(codes)[:, 0], (codes > 0).sum(1).to(count)
        square, rest = _squares(change), _squares(change - constant)
        missed = _squares(change - written)
        base_square = _squares(base - self.base_mean.to(base))
        one = torch.ones_like(count)
        size = _squares(written)
        inner = (change * written).sum(1).square() / size.clamp(min=torch.finfo(size.dtype).tiny)
        along = torch.minimum(inner, square)
        columns = [along, base_square, square - missed, square, rest - missed, rest, count, one]
        return torch.stack(columns, 1)

    def estimates(self, seed: int, where: int | None = None) -> dict[str, Estimate]:
        """Of a slice, or with None of all."""
        if not self.sums:
            return nothing()
        sums, keys = np.concatenate(self.sums), np.concatenate(self.keys)
        if where is not None:
            chosen = np.concatenate(self.slices) == where
            sums, keys = sums[chosen], keys[chosen]
        return {key: _estimate(key, sums, keys, seed) for key in RATIOS}

    @property
    def tokens(self) -> int:
        return int(sum(one[:, TOKENS].sum() for one in self.sums))

    @property
    def variance(self) -> float:
        """Of the base's states, all directions together; 0 without tokens."""
        return float(sum(one[:, BASE].sum() for one in self.sums)) / max(1, self.tokens)


def nothing() -> dict[str, Estimate]:
    return {key: Estimate(None, unit, 0, 0) for key, unit in UNITS.items()}


def _squares(x: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    return x.square().sum(1)


def _estimate(key: str, sums: np.ndarray, keys: np.ndarray, seed: int) -> Estimate:
    above, below = (sums[:, i] for i in RATIOS[key])
    if not below.sum() > 0:
        return Estimate(None, UNITS[key], 0, 0)
    interval = mean_interval(above, below, keys, seed=seed, nonnegative=key in _NONNEGATIVE)
    low, high = (interval.low, interval.high) if interval else (None, None)
    n, texts = int(sums[:, TOKENS].sum()), len(np.unique(keys))
    replicates = ratio_replicates(above, below, keys, seed=seed)
    return Estimate(float(above.sum() / below.sum()), UNITS[key], n, texts, low, high, replicates)
