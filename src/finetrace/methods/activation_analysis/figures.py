"""What is measured of one token at one layer, and the classes that tokens are sorted into."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.data import ROLES

QUANTITIES = ("relative_norm", "difference_norm", "cosine_distance", "base_norm", "tuned_norm")
UNITS = {
    "relative_norm": "of the base's norm",
    "difference_norm": "norm",
    "cosine_distance": "1 - cosine",
    "base_norm": "norm",
    "tuned_norm": "norm",
    "cka_distance": "1 - CKA",
}

_STARTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BANDS = (
    "0",
    *(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(_STARTS)),
    f"{_STARTS[-1]}+",
)
"""Classes of positions in a text: 0 alone, then twice as wide each."""

FIRST = "first"
CLASSES = (*ROLES, FIRST)
"""A first token is its own class, whoever's it is."""


def figures(
    base: Float[Tensor, "batch pos d_model"], other: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos quantity"]:
    """The `QUANTITIES` of float32 states. Not finite where a state is not, or has no length to compare with.

    The cosine distance is half the squared distance of the unit vectors: exact 0 for equal states, never below 0, and with
    digits left where 1 - cosine would have lost them.
    """
    length, base_length, other_length = (
        torch.linalg.vector_norm(x, dim=-1) for x in (other - base, base, other)
    )
    apart = base / base_length[..., None] - other / other_length[..., None]
    found = (length / base_length, length, apart.square().sum(-1) / 2, base_length, other_length)
    return torch.stack(found, -1)


def band(position: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Which of `BANDS` a position is in."""
    return torch.bucketize(position, torch.tensor(_STARTS, device=position.device), right=True)
