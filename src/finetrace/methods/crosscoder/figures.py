"""What the dictionary says of held-out texts: sums by text, and the figures that are ratios of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.reading import Tokens, portions
from finetrace.methods.crosscoder import KEYS
from finetrace.stats import ratio_replicates
from finetrace.stats.intervals import mean_interval

UNITS = dict(KEYS)
# Sums of a text, in this order; see `Sums`.
(
    ALONG, GAIN, CHANGE, INNER, REST, OWN, ENERGY, BASE_GAIN, BASE, TUNED_GAIN, TUNED, CODES, TOKENS,
) = range(13)  # fmt: skip
RATIOS = {
    "explained_change": (ALONG, BASE),
    "explained_share": (GAIN, CHANGE),
    "latents_share": (INNER, REST),
    "tuned_only_share": (OWN, ENERGY),
    "base_share": (BASE_GAIN, BASE),
    "tuned_share": (TUNED_GAIN, TUNED),
    "codes_per_token": (CODES, TOKENS),
}
_NONNEGATIVE = ("explained_change", "tuned_only_share", "codes_per_token")


@dataclass(eq=False)
class Sums:
    """By held-out text, float64. mean: [base and tuned, d], over training tokens. own: [latent], the confirmed tuned-only
    ones. The dictionary is None where nothing was trained: then only sums of the states themselves are above 0.

    For a change c = tuned - base and what the dictionary says of it, r: ALONG sums max(<c, r>, 0)^2 / |r|^2, GAIN |c|^2 -
    |c - r|^2 (of CHANGE, |c|^2), INNER |c - m|^2 - |c - r|^2 (of REST, |c - m|^2, with the mean change m). OWN and ENERGY sum
    squared codes times squared decoder norms on the tuned side. *_GAIN: the side's squared distance from its mean, less what
    is not given back.
    """

    dictionary: Dictionary | None
    mean: Float[Tensor, "side d"]
    own: NDArray[np.bool_]
    keys: list[np.ndarray] = field(default_factory=list)
    slices: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)

    def see(self, some: Tokens) -> None:
        if not len(some):
            return
        total = torch.zeros(len(some.keys), TOKENS + 1, dtype=torch.float64, device=some.base.device)
        width = self.dictionary.latents if self.dictionary is not None else 1
        for part in portions(len(some), width):
            total.index_add_(0, some.text[part], self._token(some.base[part], some.tuned[part]).double())
        sums = total.cpu().numpy()
        seen = sums[:, TOKENS] > 0
        self.keys.append(some.keys[seen])
        self.slices.append(some.slices[seen])
        self.sums.append(sums[seen])

    def _token(self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"]) -> Tensor:
        nothing = torch.zeros(len(base), dtype=torch.float64, device=base.device)
        mean = self.mean.to(base.device)
        x = [base.double(), tuned.double()]
        change, spread = x[1] - x[0], [_squares(side - mean[m]) for m, side in enumerate(x)]
        out = [nothing] * (TOKENS + 1)
        out[CHANGE], out[REST] = _squares(change), _squares(change - (mean[1] - mean[0]))
        out[BASE], out[TUNED], out[TOKENS] = *spread, torch.ones_like(nothing)
        if self.dictionary is not None:
            codes = self.dictionary.codes(torch.stack([base, tuned], 1))
            written = self.dictionary.decode(codes).double()
            said = written[:, 1] - written[:, 0]
            missed = _squares(change - said)
            along = (change * said).sum(1).clamp(min=0)
            # What the dictionary leaves out of the change has no direction: nothing lies along it.
            out[ALONG] = torch.where(along > 0, along.square() / _squares(said).clamp(min=1e-300), 0.0)
            out[GAIN], out[INNER] = out[CHANGE] - missed, out[REST] - missed
            gains = [spread[m] - _squares(side - written[:, m]) for m, side in enumerate(x)]
            out[BASE_GAIN], out[TUNED_GAIN] = gains
            energy = codes.double().square() * self.dictionary.directions()[1].double().square().sum(1)
            out[ENERGY] = energy.sum(1)
            out[OWN] = energy[:, torch.from_numpy(self.own).to(energy.device)].sum(1)
            out[CODES] = (codes > 0).sum(1).double()
        return torch.stack(out, 1)

    def estimates(self, seed: int, where: int | None = None) -> dict[str, Estimate]:
        """Of a slice, or with None of all. Without a dictionary, only of the change that is explained: none of it."""
        if not self.sums:
            return nothing()
        sums, keys = np.concatenate(self.sums), np.concatenate(self.keys)
        if where is not None:
            chosen = np.concatenate(self.slices) == where
            sums, keys = sums[chosen], keys[chosen]
        known = RATIOS if self.dictionary is not None else ("explained_change",)
        return nothing() | {key: _estimate(key, sums, keys, seed) for key in known}

    @property
    def tokens(self) -> int:
        return int(sum(one[:, TOKENS].sum() for one in self.sums))


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
