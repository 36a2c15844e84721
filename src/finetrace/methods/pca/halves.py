"""The directions of one half of the texts, and how the other half's change lies along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.engine.covariance import Components, Covariance, components
from finetrace.methods.pca import KEYS
from finetrace.methods.pca.result import Half
from finetrace.methods.pca.sums import Sums

UNITS = dict(KEYS)
# Below this singular value, a direction is in the span of those before it.
_DEPENDENT = 1e-6


@dataclass(frozen=True, eq=False)
class Moments:
    """One half, or all texts, in float64. mean [d_model]: 0 without tokens; matrix: the covariance."""

    tokens: int
    mean: Tensor
    matrix: Tensor
    found: Components

    @property
    def second(self) -> Tensor:
        return self.matrix + torch.outer(self.mean, self.mean)


def moments(sums: Covariance, k: int) -> Moments:
    """The k first components; none where fewer than two tokens were seen, or nothing varies."""
    mean, matrix = sums.mean.nan_to_num(0.0), sums.matrix().nan_to_num(0.0)
    return Moments(sums.count, mean, matrix, components(matrix, min(k, sums.rank_limit)))


def half(part: Moments, texts: int) -> Half:
    """The span of its mean and components, and the direction of the largest change within it."""
    norm = part.mean.norm()
    rows = [part.mean[None] / norm] if float(norm) > 0 else []
    stacked = torch.cat([*rows, part.found.vectors])
    _, sizes, right = torch.linalg.svd(stacked, full_matrices=False)
    basis = right[sizes > _DEPENDENT]
    top = torch.zeros_like(part.mean)
    if len(basis):
        top = torch.linalg.eigh(basis @ part.second @ basis.T)[1][:, -1] @ basis
    narrow = [t.numpy().astype(np.float32) for t in (basis, top, part.mean)]
    return Half(*narrow, tokens=part.tokens, texts=texts)


def values(
    inside: float, top: float, top_base: float, mean: float, square: float, base: float
) -> list[float | None]:
    """The figures of KEYS, in their order, from sums over tokens; None where there is nothing to divide by."""

    def share(above: float, below: float) -> float | None:
        return above / below if below > 0 else None

    return [share(top, top_base), share(inside, base), share(inside, square), share(mean, square)]


def across(sums: Sums, parts: tuple[Moments, Moments], made: tuple[Half, Half]) -> dict[str, Estimate]:
    """The figures, each half along the other's directions, from the covariances alone: no interval, and the base's variance
    along a direction that of all texts."""
    n, texts = sum(part.tokens for part in parts), int(sums.texts.sum())
    if min(part.tokens for part in parts) < 2:
        return nothing()
    base, total = sums.base.matrix(), np.zeros(6)
    everywhere = float(base.trace())
    for part, other in zip(parts, reversed(made), strict=True):
        second, top = part.second, torch.from_numpy(other.top).double()
        basis = torch.from_numpy(other.basis).double()
        average = everywhere / len(base)
        total += part.tokens * np.array(
            [
                float(((basis @ second) * basis).sum()),
                float(top @ second @ top),
                float(top @ base @ top) if other.top.any() else average,
                float(part.mean @ torch.from_numpy(other.mean).double()),
                float(second.trace()),
                everywhere,
            ]
        )
    found = values(*total.tolist())
    return {
        key: Estimate(value, UNITS[key], n if value is not None else 0, texts)
        for key, value in zip(UNITS, found, strict=True)
    }


def nothing() -> dict[str, Estimate]:
    return {key: Estimate(None, unit, 0, 0) for key, unit in UNITS.items()}
