"""One matrix's change in figures: its size, and how many directions it is spread over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from finetrace.methods.weight_spectrum.places import Place
from finetrace.methods.weight_spectrum.rounding import floor
from finetrace.weights.delta import Delta, Spectrum

# Singular values below this share of the largest are rounding of a product of factors.
_NOTHING = 1e-9


@dataclass(frozen=True, eq=False)
class Change:
    """square: squared Frobenius norm of the change; weight_square: of the base's weight. values: singular values, largest
    first, float64 [k]; whole: whether they are all. rank: how many of them stand above the rounding of a checkpoint; the
    others are in no entropy and no rank. spectrum: of the leading directions."""

    place: Place
    shape: tuple[int, int]
    square: float
    weight_square: float
    spectrum: Spectrum
    whole: bool
    rank: int

    @property
    def values(self) -> Float[Tensor, "k"]:
        return self.spectrum.values

    @property
    def relative(self) -> float | None:
        """||D|| / ||W||, Frobenius; None where the weight is 0."""
        return math.sqrt(self.square / self.weight_square) if self.weight_square > 0 else None

    @property
    def top_square(self) -> float:
        """Squared largest singular value."""
        return float(self.values[0]) ** 2

    @property
    def stable_rank(self) -> float:
        """||D||_F^2 / sigma_1^2: at least 1, at most the rank; little moved by small singular values."""
        return max(1.0, self.square / self.top_square)

    @property
    def effective_rank(self) -> float | None:
        """exp of the entropy of sigma / sum sigma (Roy and Vetterli 2007); None where not all of them are known, or none
        stands above rounding."""
        return math.exp(entropy(self.values[: self.rank])) if self._known else None

    @property
    def entropy(self) -> float | None:
        """Entropy of sigma^2 / sum sigma^2, nats: 0 for one direction, log r for r equal ones; None as above."""
        return entropy(self.values[: self.rank].square()) if self._known else None

    @property
    def _known(self) -> bool:
        return self.rank > 0 and (self.whole or self.rank < len(self.values))


def entropy(values: Float[Tensor, "k"]) -> float:
    """-sum p log p of p = values / sum, nats."""
    shares = values[values > 0] / values.sum()
    return float(-(shares * shares.log()).sum().clamp_max(0.0)) if len(shares) else 0.0


def change(delta: Delta, place: Place, weight_square: float, *, exact: int, leading: int) -> Change:
    """The figures of one change. exact, leading: as in the card's Config."""
    whole = delta.rank_bound < min(delta.shape) or max(delta.shape) <= exact
    found = delta.spectrum(None if whole else leading)
    keep = max(1, int((found.values > _NOTHING * found.values[0]).sum()))
    kept = Spectrum(found.values[:keep], found.left[:, :keep], found.right[:, :keep])
    rank = int((kept.values > floor(delta)).sum())
    return Change(place, delta.shape, delta.square(), weight_square, kept, whole, rank)
