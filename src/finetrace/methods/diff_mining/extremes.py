"""The largest rises of each row: `engine.divergences.top` where only values above 0 count, several times as fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.engine.divergences import top

_TINIEST = float(np.finfo(np.float32).tiny)
# Neighbours whose maximum decides whether a row's cell is looked at: wide enough to be few, narrow enough to say much.
_WIDTHS = (32, 256)
_WIDE_FROM = 2**14


@dataclass(frozen=True)
class Rises:
    """The k largest rises of each row, in no particular order. values: float32 [token, k], 0 where fewer than k values are
    above 0. ids: int64, -1 there."""

    values: Float[Tensor, "token k"]
    ids: Int[Tensor, "token k"]


def cell_width(vocab_size: int) -> int:
    """Rows given to `rises` go fastest with a width that this divides: pad them with zeros."""
    return _WIDTHS[vocab_size >= _WIDE_FROM]


def rises(values: Float[Tensor, "token vocab"], k: int) -> Rises:
    """The k largest values above 0 of each row, on the CPU; among equal values the lowest column wins."""
    width = cell_width(values.shape[1])
    if values.device.type != "cpu" or values.shape[1] % width or values.shape[1] < 2 * k * width:
        return _from_top(*top(values, min(k, values.shape[1])), k)
    return _from_cells(values, k, width)


def by_size(found: Rises) -> Rises:
    """Largest first."""
    order = found.values.sort(dim=1, descending=True, stable=True).indices
    return Rises(found.values.gather(1, order), found.ids.gather(1, order))


def _from_top(values: Float[Tensor, "token any"], ids: Int[Tensor, "token any"], k: int) -> Rises:
    up = values > 0
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values.where(up, 0.0), missing)
    return Rises(values.cpu(), torch.nn.functional.pad(ids.where(up, -1), missing, value=-1).cpu())


def _from_cells(values: Float[Tensor, "token vocab"], k: int, width: int) -> Rises:
    """The k-th largest of the cells' maxima is a bound that k values reach, and hardly more do; they lie in the few cells
    whose maximum reaches it, and only they are looked at."""
    rows, cells = len(values), values.shape[1] // width
    maxima = values.unflatten(1, (cells, width)).amax(2).numpy()
    bound = np.maximum(np.sort(maxima, axis=1)[:, -k], _TINIEST)
    cell = np.flatnonzero(maxima >= bound[:, None])
    inside = values.numpy().reshape(-1, width)[cell]
    at = np.flatnonzero(inside >= bound[cell // cells, None])
    owner = cell[at // width]
    row, ids, found = owner // cells, owner % cells * width + at % width, inside.reshape(-1)[at]
    kept = _largest(row, found, rows, k)
    row, ids, found = row[kept], ids[kept], found[kept]
    if len(row) == rows * k:
        return Rises(torch.from_numpy(found.reshape(rows, k)), torch.from_numpy(ids.reshape(rows, k)))
    place = (row, np.arange(len(row)) - np.searchsorted(row, row))
    best, best_ids = np.zeros((rows, k), np.float32), np.full((rows, k), -1, np.int64)
    best[place], best_ids[place] = found, ids
    return Rises(torch.from_numpy(best), torch.from_numpy(best_ids))


def _largest(
    row: Int[np.ndarray, " value"], found: Float[np.ndarray, " value"], rows: int, k: int
) -> Bool[np.ndarray, " value"]:
    """Which values, given row by row, are among their row's k largest; of those tied at the edge the first ones are."""
    count = np.bincount(row, minlength=rows)
    first = np.cumsum(count) - count
    table = np.zeros((rows, max(k, int(count.max(initial=0)))), np.float32)
    table[row, np.arange(len(row)) - first[row]] = found
    edge = np.sort(table, axis=1)[:, -k][row]
    kept = found >= edge
    if kept.sum() > np.minimum(count, k).sum():
        tied = found == edge
        above = np.bincount(row[kept & ~tied], minlength=rows)
        before = np.cumsum(tied) - tied  # ties before this one, of any row
        before -= before[np.minimum(first[row], len(row) - 1)]
        kept &= ~tied | (above[row] + before < k)
    return kept
