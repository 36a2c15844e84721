"""What of a step a dictionary reads: the tokens that count, at one layer, and what goes into the dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.engine import Step

__all__ = ["Reads", "Tokens", "held_out", "inputs", "portions", "tokens"]

Reads = Literal["both", "difference", "base", "tuned"]
"""both: (base, tuned), of a crosscoder; difference: tuned - base; base, tuned: one side alone. The last three of an SAE."""

# Codes held at once.
_NUMBERS, _MOST_TOKENS = 2**24, 4096


@dataclass(frozen=True, eq=False)
class Tokens:
    """base, tuned: float32 [token, d] of the tokens that count. text: which of the texts each is of; position: in it.

    keys: uint64 [text], what the texts hold; slices, rows: int64 [text], of `Step`. lost: tokens left out as not finite.
    """

    base: Float[Tensor, "token d"]
    tuned: Float[Tensor, "token d"]
    text: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    keys: NDArray[np.uint64]
    slices: NDArray[np.int64]
    rows: NDArray[np.int64]
    lost: int = 0

    def __len__(self) -> int:
        return self.base.shape[0]


def tokens(
    step: Step,
    layer: int,
    *,
    skip: int = 1,
    only: Callable[[NDArray[np.uint64]], NDArray[np.bool_]] | None = None,
) -> Tokens:
    """The step's tokens after block `layer`, without the first `skip` of each text: their states are outliers.

    only: which texts, by their keys (`held_out`).
    """
    wanted = step.keep & (step.position >= skip)
    if only is not None:
        wanted &= torch.from_numpy(only(step.key)).to(wanted.device)[:, None]
    where = wanted.nonzero(as_tuple=True)
    base, tuned = (side[where].float() for side in step.hidden(layer))
    finite = (base.sum(1) + tuned.sum(1)).isfinite()
    lost = int((~finite).sum())
    if lost:
        base, tuned, where = base[finite], tuned[finite], tuple(part[finite] for part in where)
    return Tokens(
        base,
        tuned,
        where[0],
        step.position[where],
        step.key,
        step.slice.cpu().numpy().astype(np.int64),
        step.row.cpu().numpy().astype(np.int64),
        lost,
    )


def held_out(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which texts are kept from training, by what they hold: equal texts fall on one side, in every run and contrast."""
    if not 0 <= share <= 1:
        raise BadInput(f"A share of texts lies between 0 and 1, not {share}.")
    # The upper bits: groups of texts are told by the lower ones.
    return (keys >> np.uint64(40)).astype(np.float64) < share * 2.0**24


def inputs(
    dictionary: Dictionary, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"], reads: Reads
) -> Float[Tensor, "token model d"]:
    """What goes into the dictionary. A dictionary of differences is given differences: f(tuned) would be another code."""
    if (reads == "both") != (dictionary.models == 2):
        raise BadInput(
            f"A dictionary of {dictionary.models} model(s) cannot read '{reads}': a crosscoder reads 'both', an SAE "
            "'difference', 'base' or 'tuned'."
        )
    match reads:
        case "both":
            return torch.stack([base, tuned], 1)
        case "difference":
            return (tuned - base)[:, None]
        case "base":
            return base[:, None]
        case _:
            return tuned[:, None]


def portions(size: int, latents: int) -> Iterator[slice]:
    """Tokens in portions whose codes fit in memory."""
    step = max(16, min(_MOST_TOKENS, _NUMBERS // latents))
    for start in range(0, size, step):
        yield slice(start, min(size, start + step))
