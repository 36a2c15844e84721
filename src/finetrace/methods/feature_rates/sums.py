"""By text: firings of all features together, in one model or both, and how well the SAE gives back each model's states."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.reading import Tokens, portions
from finetrace.methods.feature_rates import KEYS
from finetrace.stats import ratio_replicates
from finetrace.stats.intervals import mean_interval

UNITS = dict(KEYS)
# Sums of a text, in this order.
ALONE, EITHER, BASE, TUNED, MISSED_BASE, REST_BASE, MISSED_TUNED, REST_TUNED, TOKENS = range(9)
RATIOS = {
    "turnover": (ALONE, EITHER),
    "codes_base": (BASE, TOKENS),
    "codes_tuned": (TUNED, TOKENS),
    "unexplained_base": (MISSED_BASE, REST_BASE),
    "unexplained_tuned": (MISSED_TUNED, REST_TUNED),
}


@dataclass(eq=False)
class Sums:
    """float64 [text, 9] and what each text is."""

    dictionary: Dictionary
    keys: list[np.ndarray] = field(default_factory=list)
    slices: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)

    def see(self, some: Tokens) -> None:
        if not len(some):
            return
        total = torch.zeros(len(some.keys), 9, dtype=torch.float64, device=some.base.device)
        for part in portions(len(some), self.dictionary.latents):
            total.index_add_(0, some.text[part], self._token(some.base[part], some.tuned[part]).double())
        sums = total.cpu().numpy()
        seen = sums[:, TOKENS] > 0
        self.keys.append(some.keys[seen])
        self.slices.append(some.slices[seen])
        self.sums.append(sums[seen])

    def _token(self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"]) -> Tensor:
        some = self.dictionary
        fires, missed, rest = [], [], []
        constant = some.decode(torch.zeros(1, some.latents, device=base.device))
        for x in (base[:, None], tuned[:, None]):
            codes = some.codes(x)
            fires.append(codes > 0)
            missed.append((some.decode(codes) - x).square().sum((1, 2)))
            rest.append((x - constant).square().sum((1, 2)))
        columns = [
            (fires[0] ^ fires[1]).sum(1),
            (fires[0] | fires[1]).sum(1),
            fires[0].sum(1),
            fires[1].sum(1),
        ]
        columns += [missed[0], rest[0], missed[1], rest[1], torch.ones_like(missed[0])]
        return torch.stack([column.double() for column in columns], 1)

    def estimates(self, seed: int, where: int | None = None) -> dict[str, Estimate]:
        """Of a slice, or with None of all."""
        if not self.sums:
            return {key: Estimate(None, UNITS[key], 0, 0) for key in RATIOS}
        sums, keys = np.concatenate(self.sums), np.concatenate(self.keys)
        if where is not None:
            chosen = np.concatenate(self.slices) == where
            sums, keys = sums[chosen], keys[chosen]
        return {key: _estimate(key, sums, keys, seed) for key in RATIOS}


def _estimate(key: str, sums: np.ndarray, keys: np.ndarray, seed: int) -> Estimate:
    above, below = (sums[:, i] for i in RATIOS[key])
    if not below.sum() > 0:
        return Estimate(None, UNITS[key], 0, 0)
    interval = mean_interval(above, below, keys, seed=seed, nonnegative=True)
    low, high = (interval.low, interval.high) if interval else (None, None)
    n, texts = int(sums[:, TOKENS].sum()), len(np.unique(keys))
    replicates = ratio_replicates(above, below, keys, seed=seed)
    return Estimate(float(above.sum() / below.sum()), UNITS[key], n, texts, low, high, replicates)
