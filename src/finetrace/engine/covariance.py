"""Exact streaming covariances: float32 products of rows less a shift, summed in float64; mergeable, and resumed to the bit.

Without the shift a large mean would eat the digits of a small variance. The first rows' mean is as good as the true one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finetrace.core.errors import BadInput

__all__ = [
    "Components",
    "Covariance",
    "CrossCovariance",
    "components",
    "effective_rank",
    "linear_cka",
    "merged",
    "participation_ratio",
    "principal_angles",
]

# Rows in one float32 product: more would let its own sum round, fewer would spend the time on the float64 ones.
_ROWS = 4096
# A row whose norm is larger would overflow the float32 product; it is left out, as one that is not finite is.
_LARGEST = 1e15
# An eigenvalue below this share of the largest is rounding of the float32 products.
_ROUNDING = 1e-7


class Covariance:
    """Of rows of width d, in any dtype. shift: None takes the mean of the first rows that are seen.

    count: rows in it; left_out: rows that were not finite (or longer than 1e15), which are in nothing. The sums live on the
    device of the first rows. A shift is part of the state; merging another shift's sums moves them over in float64.
    """

    def __init__(self, d: int, shift: Float[Tensor, " d"] | None = None) -> None:
        if shift is not None and tuple(shift.shape) != (d,):
            raise BadInput(f"A shift of shape {tuple(shift.shape)} is not one of {d} numbers.")
        self.d, self.count, self.left_out = d, 0, 0
        self._shift = None if shift is None else _plain(shift.detach().float())
        self._sums: Tensor | None = None  # [d], of rows less the shift
        self._outer: Tensor | None = None  # [d, d]; only its upper triangle is read

    def see(self, x: Float[Tensor, "row d"]) -> None:
        """Adds rows. They are widened to float32 before anything is taken off them."""
        for part in x.split(_ROWS):
            if self._whole(part):
                continue
            usable = _usable(part)
            kept = _taken(part, usable)
            self.left_out += len(part) - len(kept)
            if len(kept):
                centred = self._centred(kept)
                self._add(centred, centred.T @ centred)

    def _whole(self, part: Float[Tensor, "row d"]) -> bool:
        """Adds the rows if every one is finite, which their product shows without another look at them."""
        if self._shift is None:
            return False
        centred = self._centred(part.float())
        product = centred.T @ centred
        if not bool(product.trace() < _LARGEST**2):
            return False
        self._add(centred, product)
        return True

    def _centred(self, rows: Tensor) -> Tensor:
        """Rows less the shift, which is made here if there is none."""
        if rows.shape[1] != self.d:
            raise BadInput(
                f"Rows of width {rows.shape[1]} cannot be added to a covariance of width {self.d}."
            )
        if self._shift is None:
            self._shift = _plain(rows.mean(0, dtype=torch.float64).float())
        self._shift = self._shift.to(rows.device)
        return rows - self._shift

    def _add(self, centred: Tensor, product: Tensor) -> None:
        sums, outer = self._totals(centred.device)
        sums += centred.sum(0, dtype=torch.float64)
        outer += product
        self.count += len(centred)

    def _totals(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Made outside of inference mode: what is made inside may not be written to later.
        with torch.inference_mode(False):
            if self._sums is None or self._outer is None:
                self._sums = torch.zeros(self.d, dtype=torch.float64, device=device)
                self._outer = torch.zeros(self.d, self.d, dtype=torch.float64, device=device)
        return self._sums, self._outer

    def merge(self, later: Self) -> None:
        """Appends what `later` saw. The same order of merging gives the same bytes."""
        if later.d != self.d:
            raise BadInput(f"Covariances of widths {self.d} and {later.d} cannot be merged.")
        self.left_out += later.left_out
        if later._shift is None or later._sums is None or later._outer is None:
            return
        if self._shift is None:
            self._shift = later._shift
        sums, outer = self._totals(later._sums.device)
        moved = _moved(later._shift, self._shift)
        if bool(moved.any()):
            cross = torch.outer(later._sums, moved)
            outer += later._outer + cross + cross.T + later.count * torch.outer(moved, moved)
            sums += later._sums + later.count * moved
        else:
            outer += later._outer
            sums += later._sums
        self.count += later.count

    def state(self) -> dict[str, Tensor]:
        """Tensors on the CPU; of the symmetric sums only the upper triangle, row by row."""
        sums, outer = self._totals(torch.device("cpu"))
        shift = torch.zeros(0) if self._shift is None else self._shift
        return {
            "count": torch.tensor([self.count, self.left_out], dtype=torch.int64),
            "shift": shift.cpu().clone(),
            "sums": sums.cpu().clone(),
            "outer": outer.cpu()[_upper(self.d)],
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.count, self.left_out = (int(n) for n in state["count"].tolist())
        self._shift = _plain(state["shift"]) if len(state["shift"]) else None
        self._sums = self._outer = None
        sums, outer = self._totals(torch.device("cpu"))
        sums += state["sums"]
        outer[_upper(self.d)] = state["outer"]

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """float64, on the CPU; NaN without rows."""
        if self._sums is None or self._shift is None or not self.count:
            return torch.full((self.d,), torch.nan, dtype=torch.float64)
        return (self._sums / self.count + self._shift.double()).cpu()

    def matrix(self, ddof: int = 0) -> Float[Tensor, "d d"]:
        """The covariance, float64, on the CPU, exactly symmetric; sums are divided by count - ddof. NaN without rows."""
        if self._sums is None or self._outer is None or self.count <= ddof:
            return torch.full((self.d, self.d), torch.nan, dtype=torch.float64)
        sums, outer = self._sums.cpu(), self._outer.cpu()
        upper = (outer - torch.outer(sums, sums) / self.count).triu_() / (self.count - ddof)
        return upper + upper.triu(1).T

    def second_moment(self) -> Float[Tensor, "d d"]:
        """Mean of x x^T, nothing taken off: the covariance and the mean's own outer product. float64."""
        mean = self.mean
        return self.matrix() + torch.outer(mean, mean)

    @property
    def rank_limit(self) -> int:
        """How many directions can vary at all: the width, or one less than the rows where they are few."""
        return min(self.d, max(0, self.count - 1))


class CrossCovariance:
    """Of two streams of rows seen side by side. A row is left out of all if it is not finite in either.

    first, second: the streams' own covariances; `matrix()` is [first's width, second's width].
    """

    def __init__(
        self,
        first: int,
        second: int,
        shifts: tuple[Float[Tensor, " a"], Float[Tensor, " b"]] | None = None,
    ) -> None:
        a, b = (None, None) if shifts is None else shifts
        self.first, self.second = Covariance(first, a), Covariance(second, b)
        self._cross: Tensor | None = None

    def see(self, first: Float[Tensor, "row a"], second: Float[Tensor, "row b"]) -> None:
        if len(first) != len(second):
            raise BadInput(f"{len(first)} rows beside {len(second)}: the streams are seen row by row.")
        for a, b in zip(first.split(_ROWS), second.split(_ROWS), strict=True):
            usable = _usable(a) & _usable(b)
            one, two = _taken(a, usable), _taken(b, usable)
            self.first.left_out += len(a) - len(one)
            self.second.left_out += len(b) - len(two)
            if not len(one):
                continue
            one, two = self.first._centred(one), self.second._centred(two)
            self.first._add(one, one.T @ one)
            self.second._add(two, two.T @ two)
            self._total(one.device).add_(one.T @ two)

    def _total(self, device: torch.device) -> Tensor:
        with torch.inference_mode(False):
            if self._cross is None:
                self._cross = torch.zeros(self.first.d, self.second.d, dtype=torch.float64, device=device)
        return self._cross

    def merge(self, later: Self) -> None:
        """Appends what `later` saw."""
        theirs, sums = later._cross, (later.first._sums, later.second._sums)
        if theirs is not None and sums[0] is not None and sums[1] is not None:
            total = self._total(theirs.device)
            moved = [
                _moved(one._shift, ours._shift)
                for one, ours in ((later.first, self.first), (later.second, self.second))
            ]
            if bool(moved[0].any()) or bool(moved[1].any()):
                n = later.first.count
                theirs = theirs + torch.outer(sums[0], moved[1]) + torch.outer(moved[0], sums[1])
                theirs = theirs + n * torch.outer(moved[0], moved[1])
            total += theirs
        self.first.merge(later.first)
        self.second.merge(later.second)

    def state(self) -> dict[str, Tensor]:
        cross = self._total(torch.device("cpu")).cpu().clone()
        found = {"cross": cross}
        for name, one in (("first", self.first), ("second", self.second)):
            found |= {f"{name}.{key}": tensor for key, tensor in one.state().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, one in (("first", self.first), ("second", self.second)):
            head = f"{name}."
            one.restore({k.removeprefix(head): v for k, v in state.items() if k.startswith(head)})
        self._cross = _plain(state["cross"])

    @property
    def count(self) -> int:
        return self.first.count

    def matrix(self, ddof: int = 0) -> Float[Tensor, "a b"]:
        """Mean of (x - mean x)(y - mean y)^T, float64, on the CPU; NaN without rows."""
        sums = self.first._sums, self.second._sums
        if self._cross is None or sums[0] is None or sums[1] is None or self.count <= ddof:
            return torch.full((self.first.d, self.second.d), torch.nan, dtype=torch.float64)
        together = torch.outer(sums[0].cpu(), sums[1].cpu())
        return (self._cross.cpu() - together / self.count) / (self.count - ddof)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal directions, the largest variance first. values [component]: variances; vectors [component, d]: of norm 1,
    each with its largest entry above 0 (the sign of a direction says nothing). float64."""

    values: Float[Tensor, " component"]
    vectors: Float[Tensor, "component d"]


def components(matrix: Float[Tensor, "d d"], k: int) -> Components:
    """The k largest of a symmetric matrix, fewer where it is narrower; those that are only rounding are left out."""
    import numpy as np
    from scipy.linalg import eigh

    d = len(matrix)
    k = min(k, d)
    if not bool(torch.isfinite(matrix).all()):
        raise BadInput("A covariance of no rows, or one that is not finite, has no components.")
    if not k:
        return Components(matrix.new_zeros(0), matrix.new_zeros(0, d))
    values, vectors = eigh(matrix.double().numpy(), subset_by_index=(d - k, d - 1))
    values, vectors = np.ascontiguousarray(values[::-1]), np.ascontiguousarray(vectors.T[::-1])
    signs = np.sign(vectors[np.arange(k), np.abs(vectors).argmax(1)])
    real = (values > _ROUNDING * values[0]) & (values > 0)
    return Components(
        torch.from_numpy(values[real]),
        torch.from_numpy(np.ascontiguousarray((vectors * signs[:, None])[real])),
    )


def merged(parts: Iterable[Covariance]) -> Covariance | None:
    """The parts as one, merged in their order; the parts stay as they are. None for no parts."""
    whole: Covariance | None = None
    for part in parts:
        if whole is None:
            whole = Covariance(part.d)
        whole.merge(part)
    return whole


def participation_ratio(matrix: Float[Tensor, "d d"]) -> float | None:
    """(sum of the variances)^2 over the sum of their squares: over how many directions the variance is spread, 1 to d. None
    where nothing varies."""
    trace, square = float(matrix.trace()), float(matrix.square().sum())
    return trace * trace / square if square > 0 else None


def effective_rank(values: Float[Tensor, " component"]) -> float | None:
    """exp of the entropy of the variances' shares (Roy & Vetterli 2007), 1 to d; of *all* variances. None where nothing
    varies."""
    positive = values[values > 0].double()
    if not len(positive):
        return None
    shares = positive / positive.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def linear_cka(
    first: Float[Tensor, "a a"], second: Float[Tensor, "b b"], cross: Float[Tensor, "a b"]
) -> float | None:
    """Linear centred kernel alignment of two streams from their covariances (Kornblith et al. 2019): 1 for the same up to
    rotation and scale, 0 for uncorrelated. Biased upwards where rows are fewer than widths. None where one never varies."""
    size = float(first.norm() * second.norm())
    return float(cross.square().sum()) / size if size > 0 else None


def principal_angles(first: Float[Tensor, "k d"], second: Float[Tensor, "l d"]) -> Float[Tensor, " angle"]:
    """Angles between the spaces that two sets of directions span, radians, the smallest first, float64 (Bjorck & Golub
    1973). Small ones are read off sines, as a cosine near 1 has no digits left for them."""
    one, two = (torch.linalg.qr(rows.double().T)[0] for rows in (first, second))
    if one.shape[1] < two.shape[1]:
        one, two = two, one
    inner = one.T @ two
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(two - one @ inner).flip(0).clamp(max=1.0)
    return torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos())


def _usable(rows: Tensor) -> Bool[Tensor, " row"]:
    """Which rows are finite and short enough to be squared."""
    return rows.float().norm(dim=1) < _LARGEST


def _taken(rows: Tensor, usable: Tensor) -> Float[Tensor, "some d"]:
    """The usable rows, float32; copied only where some are not."""
    return rows.float() if bool(usable.all()) else rows[usable].float()


def _moved(theirs: Tensor | None, ours: Tensor | None) -> Tensor:
    """How far sums about `theirs` lie from sums about `ours`, float64; nothing where one is not fixed yet."""
    if theirs is None or ours is None:
        return torch.zeros(1, dtype=torch.float64)
    return theirs.double() - ours.to(theirs.device).double()


def _upper(d: int) -> Bool[Tensor, "d d"]:
    return torch.ones(d, d, dtype=torch.bool).triu_()


def _plain(tensor: Tensor) -> Tensor:
    """A copy that may be written to later, also when made inside of inference mode."""
    with torch.inference_mode(False):
        return torch.empty_like(tensor).copy_(tensor)
