"""How well a dictionary gives back rows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.errors import DataError
from finetrace.dictionaries.dictionary import Dictionary

__all__ = ["Fit", "Share", "fit"]

_CHUNK, _NORMAL = 4096, 1.959964


@dataclass(frozen=True)
class Share:
    """A share of variance: value (None where nothing varies), rows it is from, and its 95% interval over rows.

    Rows of one text are alike, so the interval is too narrow where a text gives many.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Fit:
    """unexplained: per model, squared error over squared distance from the rows' mean (FVU: 0 is perfect, 1 is the mean).

    difference: the same of tuned - base, for two models. l0: codes a row. silent: share of latents with no code in any
    row, of which there are `n`.
    """

    n: int
    unexplained: tuple[Share, ...]
    difference: Share | None
    l0: float
    silent: float

    def mean_unexplained(self) -> float | None:
        values = [share.value for share in self.unexplained if share.value is not None]
        return sum(values) / len(values) if values else None


def fit(dictionary: Dictionary, rows: Float[Tensor, "row model d"]) -> Fit:
    """With the inference threshold, as the dictionary will be used."""
    if rows.shape[0] == 0:
        raise DataError("There are no held-out rows to validate a dictionary on.")
    device = dictionary.encoder.device
    mean = rows.double().mean(0).to(device)
    errors, sizes, codes_seen = [], [], 0
    fired = torch.zeros(dictionary.latents, dtype=torch.bool, device=device)
    for some in rows.split(_CHUNK):
        x = some.to(device).float()
        codes = dictionary.codes(x)
        errors.append(_squares(dictionary.decode(codes) - x))
        sizes.append(_squares(x - mean))
        codes_seen += int(codes.count_nonzero())
        fired |= (codes > 0).any(0)
    error, size = torch.cat(errors).cpu().numpy(), torch.cat(sizes).cpu().numpy()
    shares = [_share(error[:, i], size[:, i]) for i in range(error.shape[1])]
    n = rows.shape[0]
    return Fit(
        n=n,
        unexplained=tuple(shares[: dictionary.models]),
        difference=shares[2] if dictionary.models == 2 else None,
        l0=codes_seen / n,
        silent=1 - int(fired.sum()) / dictionary.latents,
    )


def _squares(x: Tensor) -> Float[Tensor, "row side"]:
    """Squared norms per model, and of tuned - base where there are two."""
    squares = x.double().square().sum(2)
    if x.shape[1] == 1:
        return squares
    return torch.cat([squares, (x[:, 1] - x[:, 0]).double().square().sum(1, keepdim=True)], 1)


def _share(error: np.ndarray, size: np.ndarray) -> Share:
    """sum(error) / sum(size) with an interval from the ratio's linearisation."""
    n, whole = len(error), float(size.sum())
    if whole == 0:
        return Share(None, n)
    value = float(error.sum()) / whole
    if n < 2:
        return Share(value, n)
    half = _NORMAL * float(np.sqrt(((error - value * size) ** 2).sum() * n / (n - 1))) / whole
    return Share(value, n, max(0.0, value - half), value + half)
