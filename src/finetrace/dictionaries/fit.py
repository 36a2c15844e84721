"""How well a dictionary gives back rows that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.dictionaries.dictionary import Dictionary

__all__ = ["Fit", "Share", "fit"]

_CHUNK = 4096


@dataclass(frozen=True)
class Share:
    """A share of variance: value (None where nothing varies), the rows and texts it is from, and its 95% interval over texts.

    texts is None where it is not known which row is of which text: the interval is over rows then, as if each were a text of
    its own, and too narrow, as rows of one text are alike. There is no interval of a single one.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    texts: int | None = None


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


def fit(
    dictionary: Dictionary, rows: Float[Tensor, "row model d"], texts: NDArray[np.uint64] | None = None
) -> Fit:
    """With the inference threshold, as the dictionary will be used. texts: [row], the key of each row's text, so that
    intervals are over texts; see `Share` for what they are without."""
    if rows.shape[0] == 0:
        raise DataError("There are no held-out rows to validate a dictionary on.")
    if texts is not None and len(texts) != rows.shape[0]:
        raise BadInput(f"There are {rows.shape[0]} rows and texts for {len(texts)} of them.")
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
    shares = [_share(error[:, i], size[:, i], texts) for i in range(error.shape[1])]
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


def _share(error: np.ndarray, size: np.ndarray, texts: NDArray[np.uint64] | None) -> Share:
    """sum(error) / sum(size); the interval is Student's, with the ratio's linearisation over clusters (Cochran 1977, 6.4): a
    training looks at this often, and a bootstrap each time would cost more than its step."""
    n, whole, clusters = len(error), float(size.sum()), len(error)
    known = None
    if texts is not None:
        which = np.unique(texts, return_inverse=True)[1]
        error, size = np.bincount(which, error), np.bincount(which, size)
        known = clusters = len(error)
    if whole == 0:
        return Share(None, n, texts=known)
    value = float(error.sum()) / whole
    if clusters < 2:
        return Share(value, n, texts=known)
    spread = float(np.sqrt(((error - value * size) ** 2).sum() * clusters / (clusters - 1))) / whole
    half = float(stats.t.ppf(0.975, clusters - 1)) * spread
    return Share(value, n, max(0.0, value - half), value + half, known)
