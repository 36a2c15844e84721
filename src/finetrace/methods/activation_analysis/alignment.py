"""Centred kernel alignment inside texts, from sums that can be added: nothing of size [token, token] is kept.

Tokens of one text, at most a window apart, are compared by their inner products: K of the base's states, K + E of the tuned
model's. With the unbiased estimator HSIC (Song et al. 2012), which is bilinear, three sums say all:
b = HSIC(K, K), c = HSIC(K, E), e = HSIC(E, E), and 1 - CKA^2 = (b e - c^2) / (b (b + 2c + e)). E is made from the difference
of the states, so a small change keeps its digits, and no change gives exactly 0.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The unbiased estimator divides by n (n - 3).
FEWEST = 4


def gram_sums(
    base: Float[Tensor, "batch pos d_model"],
    other: Float[Tensor, "batch pos d_model"],
    known: Bool[Tensor, "batch pos"],
    window: int,
) -> Float[Tensor, "batch 3"]:
    """(b, c, e) of each text's known tokens in float64, each window weighted by its tokens; windows start at position 1."""
    total = torch.zeros(len(base), 3, dtype=torch.float64, device=base.device)
    for start in range(1, base.shape[1], window):
        part = slice(start, start + window)
        total = total + _window(base[:, part], other[:, part], known[:, part])
    return total


def compared(known: Bool[Tensor, "batch pos"], window: int) -> Int[Tensor, " batch"]:
    """How many tokens of each text stand behind its sums."""
    parts = [known[:, start : start + window].sum(1) for start in range(1, known.shape[1], window)]
    counts = torch.stack(parts) if parts else torch.zeros(1, len(known), dtype=torch.int64)
    return torch.where(counts >= FEWEST, counts, 0).sum(0)


def _window(base: Tensor, other: Tensor, known: Tensor) -> Tensor:
    count = known.sum(1).double()
    mask = known[..., None]
    # Centred first: inner products of states with a large common part would keep few digits of what sets them apart.
    first = _centred(base.masked_fill(~mask, 0.0), mask)
    moved = _centred((other - base).masked_fill(~mask, 0.0), mask)
    half = (first + moved / 2) @ moved.mT
    k, e = _hollow(first @ first.mT), _hollow(half + half.mT)
    found = torch.stack([_hsic(a, b, count) for a, b in ((k, k), (k, e), (e, e))], -1)
    return torch.where((count >= FEWEST)[:, None], found * count[:, None], 0.0)


def _centred(x: Tensor, mask: Tensor) -> Tensor:
    mean = x.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return (x - mean).masked_fill(~mask, 0.0)


def _hollow(gram: Tensor) -> Tensor:
    """In float64, with nothing on the diagonal."""
    return gram.double() * (1 - torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device))


def _hsic(a: Tensor, b: Tensor, n: Tensor) -> Tensor:
    """Of symmetric hollow matrices [batch, pos, pos] with n tokens each; only read where n >= FEWEST."""
    n = n.clamp(min=FEWEST)
    rows = a.sum(2), b.sum(2)
    trace, both = (a * b).sum((1, 2)), rows[0].sum(1) * rows[1].sum(1)
    crossed = (rows[0] * rows[1]).sum(1)
    return (trace + both / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))


def cka_distance(sums: np.ndarray) -> np.ndarray:
    """1 - CKA from sums [..., 3]; NaN where one side's tokens are all alike, or too few to tell."""
    b, c, e = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    size = b * (b + 2 * c + e)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.clip((b * e - c * c) / size, 0.0, 1.0)
        # Below 0, the two sides' similarities are opposed: nothing is further apart than unrelated.
        distance = np.where(b + c > 0, square / (1 + np.sqrt(1 - square)), 1.0)
    return np.where((b > 0) & (size > 0), distance, np.nan)
