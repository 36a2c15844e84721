"""Spellings of one word: " cake", "cake" and "Cake"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor


def plain(text: str) -> str:
    """A token's text without case and outer spaces; a token of spaces alone stays as it is."""
    return text.strip().casefold() or text


def groups(texts: Sequence[str], merge: bool) -> NDArray[np.int64]:
    """For each column of the logits the first column of the same word; its own where variants are not merged."""
    if not merge:
        return np.arange(len(texts))
    first: dict[str, int] = {}
    return np.array([first.setdefault(plain(text), column) for column, text in enumerate(texts)], np.int64)


def once(ids: Int[Tensor, "token k"]) -> Int[Tensor, "token k"]:
    """-1 for what stands further left in the same row already, so that a position counts a word once. Given by size, the
    largest of a word's rises is left."""
    same = ids[:, :, None] == ids[:, None, :]
    return ids.masked_fill(same.tril(-1).any(2), -1)


def shown(of: NDArray[np.int64], as_spelt: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each column that stands for a word, its commonest spelling: [vocab] columns; ties go to the lowest.

    of: as `groups` gives them. as_spelt: [vocab] counts of each spelling.
    """
    order = np.lexsort((np.arange(len(of)), -as_spelt, of))
    first = np.r_[True, of[order][1:] != of[order][:-1]]
    found = of.copy()
    found[of[order][first]] = order[first]
    return found
