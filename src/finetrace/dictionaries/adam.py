"""Adam over a weight too large for the cache, a block of rows at a time: everything that touches a row is done while it is
there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Learnt"]

_FIRST, _SECOND, _EPS = 0.9, 0.999, 1e-8
_BLOCK = 2**15
"""Values in a block on a CPU: with gradient and moments about half a megabyte."""


@dataclass
class Learnt:
    """A float32 weight with what Adam remembers of it. cast: the weight in the dtype of the products (or itself)."""

    weight: Float[Tensor, "..."]
    cast: Float[Tensor, "..."]
    first: Float[Tensor, "..."]
    second: Float[Tensor, "..."]

    @classmethod
    def begin(cls, weight: Float[Tensor, "..."], product: torch.dtype) -> Learnt:
        return cls(weight, weight.to(product), torch.zeros_like(weight), torch.zeros_like(weight))

    @torch.no_grad()
    def move(self, gradient: Float[Tensor, "..."], rate: float, step: int, *, unit: bool = False) -> None:
        """One step, counted from 1 (Kingma and Ba, 2015). unit: rows stay of norm 1.

        What would change the length of such a row is taken out of its gradient: its length is set back to 1 anyway, and
        the moments would remember it.
        """
        width = self.weight.shape[-1]
        rows = self.weight.numel() // width
        block = max(1, _BLOCK // width) if self.weight.device.type == "cpu" else rows
        tensors = (self.weight, self.cast, self.first, self.second, gradient)
        blocks = (tensor.view(rows, width).split(block) for tensor in tensors)
        size, root = rate / (1 - _FIRST**step), (1 - _SECOND**step) ** 0.5
        for weight, cast, first, second, slope in zip(*blocks, strict=True):
            slope = slope.to(weight.dtype)
            if unit:
                slope = slope - (slope * weight).sum(1, keepdim=True) * weight
            first.lerp_(slope, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(slope, slope, value=1 - _SECOND)
            weight.addcdiv_(first, second.sqrt().div_(root).add_(_EPS), value=-size)
            if unit:
                weight.div_(weight.norm(dim=1, keepdim=True))
            if cast.dtype != weight.dtype:
                cast.copy_(weight)
