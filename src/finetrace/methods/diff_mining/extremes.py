"""The largest rises of each row: `engine.divergences.top` where only values above 0 count, several times as fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.engine.divergences import top

_TINIEST = float(np.finfo(np.float32).tiny)
# Neighbours whose maximum decides whether a row's cell is looked at: wide enough to be few, narrow enough to say much.
_WIDTHS = (32, 256)
_WIDE_FROM = 2**14


@dataclass(frozen=True)
class Rises:
    """values: float32 [token, k], largest first, 0 where fewer than k values are above 0. ids: int64, -1 there."""

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


def _from_top(values: Float[Tensor, "token any"], ids: Int[Tensor, "token any"], k: int) -> Rises:
    up = values > 0
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values.where(up, 0.0), missing)
    return Rises(values.cpu(), torch.nn.functional.pad(ids.where(up, -1), missing, value=-1).cpu())


def _from_cells(values: Float[Tensor, "token vocab"], k: int, width: int) -> Rises:
    """The k-th largest of the cells' maxima is a bound that k values reach, and hardly more do; they lie in the few cells
    whose maximum reaches it, and only they are sorted."""
    rows, size = values.shape
    maxima = values.unflatten(1, (size // width, width)).amax(2)
    bound = maxima.topk(k, sorted=False).values.amin(1).clamp_(min=_TINIEST).numpy()
    cell = np.flatnonzero(maxima.numpy() >= bound[:, None])
    inside = values.numpy().reshape(-1, width)[cell]
    at = np.flatnonzero(inside >= bound[cell // maxima.shape[1], None])
    owner = cell[at // width]
    row, ids = owner // maxima.shape[1], owner % maxima.shape[1] * width + at % width
    found = inside.reshape(-1)[at]
    order = np.lexsort((-found, row))  # stable: equal values stay in the order of their columns
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = rank < k
    place, order = (row[kept], rank[kept]), order[kept]
    best, best_ids = np.zeros((rows, k), np.float32), np.full((rows, k), -1, np.int64)
    best[place], best_ids[place] = found[order], ids[order]
    return Rises(torch.from_numpy(best), torch.from_numpy(best_ids))
