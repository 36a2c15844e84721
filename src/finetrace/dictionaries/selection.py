"""The strongest codes of a batch: exactly so many, found among those above a guess instead of by sorting all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Selection", "select"]

# The guess is rounded to the codes' dtype (bfloat16: 1 in 256), so the cut has to clear it by more than that.
_CLEAR = 1.01


@dataclass(frozen=True)
class Selection:
    """kept: per side, positions in the flattened [row, latent], ascending. cut: the smallest weighted code that was kept,
    None where none was."""

    kept: tuple[Int[Tensor, " code"], ...]
    cut: float | None


def select(
    pre: Float[Tensor, "row latent"], weights: Float[Tensor, "side latent"] | None, count: int, guess: float
) -> Selection:
    """The `count` largest pre * weights over rows, latents and sides, of those above 0; among equals the first.

    weights: None for one side of ones. guess: a bound that the cut is probably above (the last batch's, somewhat lowered);
    it changes what this costs and never what is found.
    """
    found, joint = _candidates(pre, weights, guess)
    cut = _cut(joint, count)
    if guess > 0 and (cut is None or float(cut) <= guess * _CLEAR):
        found, joint = _candidates(pre, weights, 0.0)
        cut = _cut(joint, count)
    if cut is None:
        return Selection(tuple(found), float(joint.min()) if joint.numel() else None)
    keep = _first(joint, cut, count).split([flat.numel() for flat in found])
    return Selection(tuple(flat[kept] for flat, kept in zip(found, keep, strict=True)), float(cut))


def _candidates(pre: Tensor, weights: Tensor | None, bound: float) -> tuple[list[Tensor], Tensor]:
    """Positions above the bound, per side, and the weighted codes there, sides one after the other."""
    sides = _sides(weights)
    found = [_above(pre, own, bound) for own in sides]
    return found, torch.cat([_strengths(pre, own, flat) for own, flat in zip(sides, found, strict=True)])


def _cut(joint: Tensor, count: int) -> Tensor | None:
    """The `count`-th largest; None if there are no more than so many."""
    surplus = joint.numel() - count
    return joint.kthvalue(surplus + 1).values if surplus > 0 else None


def _sides(weights: Tensor | None) -> list[Tensor | None]:
    return [None] if weights is None else list(weights)


def _above(pre: Tensor, weights: Tensor | None, bound: float) -> Tensor:
    """Positions above the bound. A weight of 0 has an infinite bound, or none at all: never above."""
    if weights is None:
        return (pre > bound).view(-1).nonzero().squeeze(1)
    return (pre > (bound / weights).to(pre.dtype)).view(-1).nonzero().squeeze(1)


def _strengths(pre: Tensor, weights: Tensor | None, flat: Tensor) -> Tensor:
    values = pre.view(-1)[flat]
    if weights is None:
        return values if values.dtype == torch.float64 else values.float()
    return values.to(weights.dtype) * weights[flat % pre.shape[1]]


def _first(joint: Tensor, cut: Tensor, count: int) -> Tensor:
    """Those above the cut, and of those equal to it the first ones, `count` in all."""
    keep = joint > cut
    ties = (joint == cut).nonzero().squeeze(1)
    keep[ties[: count - int(keep.sum())]] = True
    return keep
