"""Two vocabularies as one: aligned by token string, in the base's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import ModelError

# Neutral texts that tokenizers of different origin split differently.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1987, 3.14159 of them cost $42 (about 7%).",
    "def f(x):\n    return x + 1\n",
    "naïve café — Zürich, 東京, Москва",
    "  two  spaces,\ttabs and\n\nnew lines",
)
SMALLEST_SHARE = 0.5


@dataclass(frozen=True)
class Alignment:
    """How one side's rows (token ids) meet the base's.

    base_rows: base ids of the shared tokens, in order. to_side: base id -> this side's id, -1 where there is none. Both
    are None where the two sides have the same rows. only_base, only_side: token strings that one side alone has.
    """

    base_rows: Tensor | None
    to_side: Tensor | None
    size: int
    only_base: tuple[str, ...] = ()
    only_side: tuple[str, ...] = ()


def align(
    base: Mapping[str, int],
    side: Mapping[str, int],
    base_size: int,
    side_size: int,
    *,
    one_head: bool,
    name: str,
) -> Alignment:
    """Aligns token strings -> ids of a base and a side whose heads have `base_size` and `side_size` rows.

    Rows without a string (padding) are the same row where both sides have that id without a string. one_head: the
    sides share one head, so that a row named on one side only is still the same row.
    """
    only_base = tuple(sorted(token for token in base if token not in side))
    only_side = tuple(sorted(token for token in side if token not in base))
    same_ids = all(side[token] == row for token, row in base.items() if token in side)
    if same_ids and base_size == side_size and (one_head or not (only_base or only_side)):
        return Alignment(None, None, base_size, only_base, only_side)
    to_side = torch.full((base_size,), -1, dtype=torch.long)
    named_base, named_side = set(base.values()), set(side.values())
    for row in range(min(base_size, side_size)):
        if row not in named_base and row not in named_side:
            to_side[row] = row
    for token, row in base.items():
        other = side.get(token, -1)
        if row < base_size and 0 <= other < side_size:
            to_side[row] = other
    base_rows = (to_side >= 0).nonzero().flatten()
    if len(base_rows) < SMALLEST_SHARE * base_size:
        raise ModelError(
            f"The vocabulary of {name} cannot be aligned with the base's: only {len(base_rows)} of {base_size} "
            "tokens are common to both; these models do not descend from one another."
        )
    return Alignment(base_rows, to_side, len(base_rows), only_base, only_side)


def refuse_other_splits(base: Any, side: Any, name: str) -> None:
    """A ModelError where two tokenizers split one of a few plain texts differently."""
    for text in PROBES:
        ours, theirs = (
            t.convert_ids_to_tokens(t.encode(text, add_special_tokens=False)) for t in (base, side)
        )
        if ours != theirs:
            raise ModelError(
                f"The vocabulary of {name} cannot be aligned with the base's: its tokenizer splits {text[:24]!r}… "
                f"into {len(theirs)} tokens, the base's into {len(ours)} (or into other ones)."
            )


def shared_rows(alignments: Mapping[str, Alignment], base_size: int) -> Tensor | None:
    """Base ids of the tokens that every side has, in base order; None where that is all of them."""
    keep = torch.ones(base_size, dtype=torch.bool)
    for alignment in alignments.values():
        if alignment.base_rows is not None:
            keep &= torch.zeros(base_size, dtype=torch.bool).index_fill(0, alignment.base_rows, True)
    return None if bool(keep.all()) else keep.nonzero().flatten()
