"""What the dictionary says of held-out texts: sums by text, and the figures that are ratios of them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.sums import Ratio, TextSums, nothing, squares
from finetrace.methods.crosscoder import KEYS

# Sums of a text, in this order; see `Sums`.
(
    ALONG, GAIN, CHANGE, INNER, REST, OWN, ENERGY, BASE_GAIN, BASE, TUNED_GAIN, TUNED, CODES, TOKENS,
) = range(13)  # fmt: skip
RATIOS = {
    "explained_change": Ratio(ALONG, BASE, positive=True),
    "explained_share": Ratio(GAIN, CHANGE),
    "latents_share": Ratio(INNER, REST),
    "tuned_only_share": Ratio(OWN, ENERGY, positive=True),
    "base_share": Ratio(BASE_GAIN, BASE),
    "tuned_share": Ratio(TUNED_GAIN, TUNED),
    "codes_per_token": Ratio(CODES, TOKENS, positive=True),
}


class Sums:
    """By held-out text, float64. mean: [base and tuned, d], over training tokens. own: [latent], the confirmed tuned-only
    ones. The dictionary is None where nothing was trained: then only sums of the states themselves are above 0.

    For a change c = tuned - base and what the dictionary says of it, r: ALONG sums max(<c, r>, 0)^2 / |r|^2, GAIN |c|^2 -
    |c - r|^2 (of CHANGE, |c|^2), INNER |c - m|^2 - |c - r|^2 (of REST, |c - m|^2, with the mean change m). OWN and ENERGY sum
    squared codes times squared decoder norms on the tuned side. *_GAIN: the side's squared distance from its mean, less what
    is not given back.
    """

    def __init__(
        self, dictionary: Dictionary | None, mean: Float[Tensor, "side d"], own: NDArray[np.bool_]
    ) -> None:
        self.dictionary, self.mean, self.own = dictionary, mean, own
        self._texts = TextSums(self._token, TOKENS + 1, dictionary.latents if dictionary is not None else 1)
        self.see = self._texts.see

    def _token(self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"]) -> Tensor:
        nothing = torch.zeros(len(base), dtype=torch.float64, device=base.device)
        mean = self.mean.to(base.device)
        x = [base.double(), tuned.double()]
        change, spread = x[1] - x[0], [squares(side - mean[m]) for m, side in enumerate(x)]
        out = [nothing] * (TOKENS + 1)
        out[CHANGE], out[REST] = squares(change), squares(change - (mean[1] - mean[0]))
        out[BASE], out[TUNED], out[TOKENS] = *spread, torch.ones_like(nothing)
        if self.dictionary is not None:
            codes = self.dictionary.codes(torch.stack([base, tuned], 1))
            written = self.dictionary.decode(codes).double()
            said = written[:, 1] - written[:, 0]
            missed = squares(change - said)
            along = (change * said).sum(1).clamp(min=0)
            # What the dictionary leaves out of the change has no direction: nothing lies along it.
            out[ALONG] = torch.where(along > 0, along.square() / squares(said).clamp(min=1e-300), 0.0)
            out[GAIN], out[INNER] = out[CHANGE] - missed, out[REST] - missed
            gains = [spread[m] - squares(side - written[:, m]) for m, side in enumerate(x)]
            out[BASE_GAIN], out[TUNED_GAIN] = gains
            energy = codes.double().square() * self.dictionary.directions()[1].double().square().sum(1)
            out[ENERGY] = energy.sum(1)
            out[OWN] = energy[:, torch.from_numpy(self.own).to(energy.device)].sum(1)
            out[CODES] = (codes > 0).sum(1).double()
        return torch.stack(out, 1)

    def estimates(self, seed: int, where: int | None = None) -> dict[str, Estimate]:
        """Of a slice, or with None of all. Without a dictionary, only of the change that is explained: none of it."""
        known, units = RATIOS if self.dictionary is not None else ("explained_change",), dict(KEYS)
        return nothing(KEYS) | {
            key: self._texts.estimate(RATIOS[key], units[key], seed, where) for key in known
        }
