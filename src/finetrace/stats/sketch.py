"""Quantiles and histograms of streams that are never kept: counts in bins that a float32's own leading bits name.

Every power of two is cut into equal bins, so what is read off lies within a fixed share of the true value however large or
small it is. Bins are the same in every sketch: merging adds integers, in any order and any cut to the same bits. The guarantee
is that of Masson et al. 2019 ("DDSketch"); bins by leading bits need no logarithm, and none is rounded.
"""

from __future__ import annotations

from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from finetrace.core.errors import BadInput
from finetrace.stats.bootstrap import FloatArray

Int64Array = NDArray[np.int64]

_FRACTION = 23  # bits of a float32's fraction
_MOST_BITS = 12


class Sketch:
    """Counts of non-negative values, for every group of a grid of `shape`.

    bits: each power of two is cut into 2^bits bins; a value read off is within `error` of the one it stands for. Values below
    2^-126 count as 0. Memory: 8 bytes x groups x 2^bits for each power of two between the smallest and the largest value.
    """

    def __init__(self, shape: tuple[int, ...], bits: int = 6) -> None:
        if not 0 <= bits <= _MOST_BITS:
            raise BadInput(f"A sketch takes 0 to {_MOST_BITS} bits, not {bits}.")
        if not shape or any(size < 0 for size in shape):
            raise BadInput(f"A sketch has groups in a grid; {shape} is none.")
        self.shape, self.bits = shape, bits
        self._zeros = np.zeros(prod(shape), np.int64)
        self._first = 0  # the bin of column 0, a multiple of 2^bits
        self._counts = np.zeros((prod(shape), 0), np.int64)

    @property
    def error(self) -> float:
        """The largest relative error of a quantile: half a bin, the same at both of its ends."""
        return 1.0 / (2.0 ** (self.bits + 1) + 1.0)

    @property
    def count(self) -> Int64Array:
        """How many values each group has seen, [*shape]."""
        return (self._zeros + self._counts.sum(1)).reshape(self.shape)

    def see(self, values: NDArray[np.floating], group: Int64Array) -> None:
        """Adds values [n]; group [n] is each one's flat index into the grid. They are read as float32."""
        values, group = np.asarray(values).ravel(), np.asarray(group).ravel()
        if values.shape != group.shape:
            raise BadInput(f"{len(values)} values and {len(group)} groups: a value has one group.")
        if not len(values):
            return
        with np.errstate(over="ignore"):
            small = np.ascontiguousarray(values, np.float32)
        if not (np.isfinite(small) & (small >= 0)).all():
            raise BadInput(
                "A sketch counts finite values that are not negative: leave the others out, and say how many."
            )
        if group.min() < 0 or group.max() >= len(self._zeros):
            raise BadInput(f"There is no such group in a grid of {self.shape}.")
        bins = (small.view(np.uint32) >> np.uint32(_FRACTION - self.bits)).astype(np.int64)
        zero = bins < 1 << self.bits
        np.add.at(self._zeros, group[zero], 1)
        bins, group = bins[~zero], group[~zero]
        if len(bins):
            self._widen(int(bins.min()), int(bins.max()) + 1)
            np.add.at(self._counts.reshape(-1), group * self._counts.shape[1] + bins - self._first, 1)

    def _widen(self, start: int, stop: int) -> None:
        """Room for the bins [start, stop), by whole powers of two."""
        width = 1 << self.bits
        start, stop = start // width * width, -(-stop // width) * width
        have = self._counts.shape[1]
        if have:
            start, stop = min(start, self._first), max(stop, self._first + have)
        if stop - start > have:
            wider = np.zeros((len(self._zeros), stop - start), np.int64)
            at = self._first - start if have else 0
            wider[:, at : at + have] = self._counts
            self._first, self._counts = start, wider

    def merge(self, later: Self) -> None:
        """Adds what `later` saw: exact, whichever comes first."""
        if (later.shape, later.bits) != (self.shape, self.bits):
            raise BadInput(
                f"A sketch of {later.shape}, {later.bits} bits, cannot be merged into {self.shape}, {self.bits}."
            )
        self._zeros += later._zeros
        width = later._counts.shape[1]
        if width:
            self._widen(later._first, later._first + width)
            at = later._first - self._first
            self._counts[:, at : at + width] += later._counts

    def state(self) -> dict[str, Int64Array]:
        """Only what is not 0. cell [n, 2]: group and bin (bin 0: the value 0); count [n]."""
        none = np.flatnonzero(self._zeros)
        group, column = np.nonzero(self._counts)
        return {
            "cell": np.concatenate(
                [
                    np.stack([none, np.zeros_like(none)], 1),
                    np.stack([group, column + self._first], 1),
                ]
            ).astype(np.int64),
            "count": np.concatenate([self._zeros[none], self._counts[group, column]]),
        }

    def restore(self, state: dict[str, Int64Array]) -> None:
        (group, bins), count = state["cell"].T, state["count"]
        self._zeros = np.zeros_like(self._zeros)
        self._first, self._counts = 0, np.zeros((len(self._zeros), 0), np.int64)
        zero = bins == 0
        self._zeros[group[zero]] = count[zero]
        if not zero.all():
            self._widen(int(bins[~zero].min()), int(bins[~zero].max()) + 1)
            self._counts[group[~zero], bins[~zero] - self._first] = count[~zero]

    def summed(self, axis: int) -> Sketch:
        """The groups along one axis of the grid taken together."""
        axis = range(len(self.shape))[axis]
        rest = self.shape[:axis] + self.shape[axis + 1 :]
        whole = Sketch(rest or (1,), self.bits)
        whole._first = self._first
        whole._zeros = self._zeros.reshape(self.shape).sum(axis).reshape(-1)
        columns = self._counts.shape[1]
        whole._counts = self._counts.reshape(*self.shape, columns).sum(axis).reshape(prod(rest), columns)
        return whole

    def at(self, index: int) -> Sketch:
        """The groups at one index of the grid's first axis, apart."""
        part = Sketch(self.shape[1:] or (1,), self.bits)
        part._first = self._first
        part._zeros = self._zeros.reshape(self.shape[0], -1)[index].copy()
        part._counts = self._counts.reshape(self.shape[0], len(part._zeros), self._counts.shape[1])[
            index
        ].copy()
        return part

    def _edges(self) -> FloatArray:
        """Of the bins held, exactly: [bin + 1]."""
        return _value(np.arange(self._counts.shape[1] + 1) + self._first, self.bits)

    def _values(self) -> FloatArray:
        """What stands for 0 and for each bin held: as far, relatively, from its lower end as from its upper."""
        edges = self._edges()
        low, high = edges[:-1], edges[1:]
        return np.concatenate([[0.0], low * (2 * high / (low + high))])

    def _columns(self) -> Int64Array:
        """Counts with those of 0 in front, [group, bin + 1]."""
        return np.concatenate([self._zeros[:, None], self._counts], 1)

    def quantile(self, share: float) -> FloatArray:
        """The value that stands at place floor(share x (n - 1)) of each group's n, within `error`, [*shape]; NaN for none."""
        if not 0.0 <= share <= 1.0:
            raise BadInput(f"A quantile is of a share from 0 to 1, not {share}.")
        below = self._columns().cumsum(1)
        n = below[:, -1]
        rank = np.floor(share * np.maximum(n - 1, 0)).astype(np.int64)
        at = (below <= rank[:, None]).sum(1)
        found = self._values()[np.minimum(at, below.shape[1] - 1)]
        return np.where(n > 0, found, np.nan).reshape(self.shape)

    def above(self, threshold: FloatArray) -> Int64Array:
        """How many values of each group are larger than its threshold, [*shape]; those within `error` of it count either way.
        None is larger than a threshold that is not a number."""
        limits = np.broadcast_to(threshold, self.shape).reshape(-1, 1)
        return (self._columns() * (self._values() > limits)).sum(1).reshape(self.shape)

    def histogram(self, splits: int = 1) -> tuple[FloatArray, Int64Array]:
        """Exact counts between consecutive edges: (edges [bin + 1], counts [*shape, bin]). splits: each power of two is cut
        into 2^splits equal parts, at most as fine as the sketch. The first bin, from 0, holds what is 0."""
        if not 0 <= splits <= self.bits:
            raise BadInput(f"A histogram takes 0 to {self.bits} splits, not {splits}.")
        fine = 1 << (self.bits - splits)
        wide = self._counts.shape[1] // fine
        counts = self._counts.reshape(len(self._zeros), wide, fine).sum(2)
        # Without values there are no edges to tell: one bin, up to 1.
        edges = self._edges()[::fine] if self._counts.shape[1] else np.ones(1)
        both = np.concatenate([self._zeros[:, None], counts], 1)
        return np.concatenate([[0.0], edges]), both.reshape(*self.shape, wide + 1)


def _value(bins: Int64Array, bits: int) -> FloatArray:
    """The lower ends of bins; the end of the last one is 2^128."""
    exponent, part = np.divmod(bins, 1 << bits)
    return np.ldexp(1.0 + part / (1 << bits), exponent - 127)
