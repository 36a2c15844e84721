"""What the dictionary gives back of held-out texts: sums by text, and the figures that are ratios of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.sums import Ratio, TextSums, nothing, squares
from finetrace.methods.sae_difference import KEYS

# Sums of a text, in this order.
ALONG, BASE, GAIN, SQUARE, INNER, REST, CODES, TOKENS = range(8)
RATIOS = {
    "explained_change": Ratio(ALONG, BASE, positive=True),
    "explained_share": Ratio(GAIN, SQUARE),
    "latents_share": Ratio(INNER, REST),
    "codes_per_token": Ratio(CODES, TOKENS, positive=True),
}


class Sums:
    """By held-out text, float64. constant: [d], what is written at every token; the dictionary is None where that is all, and
    the constant 0 where nothing changed.

    ALONG: of the squared part of each change along what is written; BASE: of the base's states less their mean. GAIN: SQUARE,
    of the changes, less what is not given back; INNER: the same, of changes less the constant part (REST).
    """

    def __init__(
        self, dictionary: Dictionary | None, constant: Float[Tensor, " d"], base_mean: Float[Tensor, " d"]
    ) -> None:
        self.dictionary, self.constant, self.base_mean = dictionary, constant, base_mean
        self._texts = TextSums(self._token, TOKENS + 1, dictionary.latents if dictionary is not None else 1)
        self.see = self._texts.see

    def _token(self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"]) -> Tensor:
        change, constant = tuned - base, self.constant.to(base)
        written, count = constant.expand_as(change), torch.zeros(len(base), device=base.device)
        if self.dictionary is not None:
            codes = self.dictionary.codes(change[:, None])
            written, count = self.dictionary.decode(codes)[:, 0], (codes > 0).sum(1).to(count)
        square, rest = squares(change), squares(change - constant)
        missed = squares(change - written)
        base_square = squares(base - self.base_mean.to(base))
        size = squares(written)
        inner = (change * written).sum(1).square() / size.clamp(min=torch.finfo(size.dtype).tiny)
        along = torch.minimum(inner, square)
        columns = [along, base_square, square - missed, square, rest - missed, rest, count]
        return torch.stack([*columns, torch.ones_like(count)], 1)

    def estimates(self, seed: int, where: int | None = None) -> dict[str, Estimate]:
        """Of a slice, or with None of all. Without a dictionary there are no latents to speak of; without a change, only that
        none of it was found."""
        known = list(RATIOS)
        if self.dictionary is None:
            known = known[:2] if bool(self.constant.any()) else known[:1]
        units = dict(KEYS)
        return nothing(KEYS) | {
            key: self._texts.estimate(RATIOS[key], units[key], seed, where) for key in known
        }
