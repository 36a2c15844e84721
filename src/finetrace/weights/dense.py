"""A change with no factors: two matrices side by side, read a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.weights.delta import Delta, Matrix, Spectrum, blocks, tiles

# Matrices up to this many entries are decomposed exactly whatever k is.
_EXACT = 1 << 20
_OVERSAMPLE, _POWERS = 10, 6


@dataclass(frozen=True)
class Dense(Delta):
    """factor * (after - before): a full fine-tune or a merged checkpoint. before, after [out, in], of any dtype."""

    module: str
    before: Matrix
    after: Matrix
    factor: float = 1.0
    baseline: str = "base"

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.before.shape[0], self.before.shape[1])

    def tile(self, start: int, stop: int) -> Tensor:
        after, before = self.after[start:stop], self.before[start:stop]
        return self.factor * (after.to(before.device).double() - before.double())

    def apply(self, inputs: Tensor) -> Tensor:
        found = [inputs @ tile.to(inputs.dtype).T for _, _, tile in tiles(self)]
        return torch.cat(found, -1)

    def row_squares(self) -> Tensor:
        return tile_row_squares(self)

    def column_squares(self) -> Tensor:
        return tile_column_squares(self)

    def row_dots(self, weight: Matrix) -> Tensor:
        return torch.cat([(tile * weight[start:stop]).sum(1) for start, stop, tile in tiles(self)])

    def column_dots(self, weight: Matrix) -> Tensor:
        found = torch.zeros(self.shape[1], dtype=torch.float64, device=self.before.device)
        for start, stop, tile in tiles(self):
            found += (tile * weight[start:stop]).sum(0)
        return found

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        after, before = self.after[rows, columns], self.before[rows, columns]
        return self.factor * (after.to(before.device).double() - before.double())

    def spectrum(self, k: int | None = None) -> Spectrum:
        return tile_spectrum(self, k)

    def along_output(self, directions: Tensor) -> Tensor:
        found = torch.zeros(len(directions), self.shape[1], dtype=torch.float64, device=self.before.device)
        for start, stop, tile in tiles(self):
            found += directions[:, start:stop].double() @ tile
        return found

    def along_input(self, directions: Tensor) -> Tensor:
        right = directions.double().T
        return torch.cat([tile @ right for _, _, tile in tiles(self)]).T

    def scaled(self, factor: float) -> Dense:
        return replace(self, factor=self.factor * factor)

    @property
    def rank_bound(self) -> int:
        return min(self.shape)


def tile_row_squares(delta: Delta) -> Float[Tensor, "out"]:
    """Squared norms of the rows of any change, from its tiles."""
    return torch.cat([tile.square().sum(1) for _, _, tile in tiles(delta)])


def tile_column_squares(delta: Delta) -> Float[Tensor, "in"]:
    """Squared norms of the columns of any change, from its tiles."""
    found = torch.zeros(delta.shape[1], dtype=torch.float64)
    for _, _, tile in tiles(delta):
        found = found.to(tile.device) + tile.square().sum(0)
    return found


def tile_spectrum(delta: Delta, k: int | None) -> Spectrum:
    """The decomposition of a change without factors.

    Exact for all values (k None), for small matrices and for k above a quarter of all; else by seeded subspace
    iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), whose leading values are exact where they stand out.
    """
    small = min(delta.shape)
    k = small if k is None else min(k, small)
    if delta.shape[0] * delta.shape[1] <= _EXACT or 4 * (k + _OVERSAMPLE) > small:
        whole = torch.cat([tile for _, _, tile in tiles(delta)])
        u, values, vt = torch.linalg.svd(whole, full_matrices=False)
        return Spectrum(values[:k], u[:, :k], vt.T[:, :k])
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(k + _OVERSAMPLE, delta.shape[1], generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(delta.along_input(start.to(delta.tile(0, 1).device)).T).Q
    for _ in range(_POWERS):
        right = torch.linalg.qr(delta.along_output(left.T).T).Q
        left = torch.linalg.qr(delta.along_input(right.T).T).Q
    u, values, vt = torch.linalg.svd(delta.along_output(left.T), full_matrices=False)
    return Spectrum(values[:k], (left @ u)[:, :k], vt.T[:, :k])


def same(before: Tensor, after: Tensor) -> bool:
    """Whether two matrices hold the same numbers, of whatever dtypes."""
    if before is after:
        return True
    if before.dtype == after.dtype:
        return torch.equal(before, after.to(before.device))
    pieces = blocks(before.shape[0], before[0].numel() if before.ndim > 1 else 1)
    return all(torch.equal(before[i:j].double(), after[i:j].to(before.device).double()) for i, j in pieces)
