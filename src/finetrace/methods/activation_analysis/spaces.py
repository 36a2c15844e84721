"""The two models' spaces at some layers: covariances over the whole corpus, their alignment and principal angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.engine.covariance import (
    CrossCovariance,
    components,
    linear_cka,
    participation_ratio,
    principal_angles,
)

# Of one layer: the base's covariance, the tuned model's and the one between them, in float64.
_BYTES = 3 * 8


@dataclass(frozen=True)
class Space:
    """One layer, all slices together, first tokens apart. tokens: rows behind it. cka_distance: 1 - linear CKA over the
    corpus. angles: between the leading directions, degrees, the smallest first. base_spread, tuned_spread: participation
    ratios, over how many directions the states are spread. None where nothing varies."""

    layer: int
    tokens: int
    cka_distance: float | None
    angles: tuple[float, ...]
    base_spread: float | None
    tuned_spread: float | None


def layers_kept(n_layers: int, d_model: int, layer: int, megabytes: int) -> tuple[int, ...]:
    """The layers whose covariances fit: all, or evenly spread ones, and always `layer` if any fits."""
    fit = min(n_layers, megabytes * 10**6 // (_BYTES * d_model * d_model))
    if fit < 1:
        return ()
    if fit == 1:
        return (layer,)
    spread = np.linspace(0, n_layers - 1, fit).round().astype(int).tolist()
    nearest = min(range(fit), key=lambda i: (abs(spread[i] - layer), i))
    spread[nearest] = layer
    return tuple(sorted(set(spread)))


class Spaces:
    """A cross-covariance for each kept layer."""

    def __init__(self, layers: tuple[int, ...], d_model: int) -> None:
        self._parts = {layer: CrossCovariance(d_model, d_model) for layer in layers}

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self._parts)

    def see(self, layer: int, base: Float[Tensor, "row d"], other: Float[Tensor, "row d"]) -> None:
        self._parts[layer].see(base, other)

    def merge(self, later: Spaces) -> None:
        for layer, part in self._parts.items():
            part.merge(later._parts[layer])

    def state(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{name}": tensor
            for layer, part in self._parts.items()
            for name, tensor in part.state().items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        for layer, part in self._parts.items():
            head = f"{layer}."
            part.restore({name.removeprefix(head): t for name, t in state.items() if name.startswith(head)})

    def found(self, directions: int) -> tuple[Space, ...]:
        return tuple(_space(layer, part, directions) for layer, part in self._parts.items() if part.count > 1)


def _space(layer: int, seen: CrossCovariance, directions: int) -> Space:
    base, other, cross = seen.first.matrix(), seen.second.matrix(), seen.matrix()
    leading = [components(matrix, directions).vectors for matrix in (base, other)]
    k = min(len(vectors) for vectors in leading)
    if torch.equal(base, other) and torch.equal(base, cross):
        # The same states: rounding is not to look like an angle.
        distance, angles = (0.0 if bool(base.any()) else None), torch.zeros(k)
    else:
        cka = linear_cka(base, other, cross)
        distance = None if cka is None else max(0.0, 1.0 - cka)
        angles = principal_angles(leading[0][:k], leading[1][:k]) if k else torch.zeros(0)
    return Space(
        layer=layer,
        tokens=seen.count,
        cka_distance=distance,
        angles=tuple(torch.rad2deg(angles).tolist()),
        base_spread=participation_ratio(base),
        tuned_spread=participation_ratio(other),
    )
