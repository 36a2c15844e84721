"""DoRA: every output row of W + s B A turned and then set to a trained length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.weights.delta import Delta, LowRank, Matrix, Spectrum, blocks, precision
from finetrace.weights.dense import tile_spectrum


@dataclass(frozen=True)
class Dora(Delta):
    """factor * (diag(ratio) (W + D) - W), D low-rank: ratio_i = m_i / ||W_i + D_i||, m the trained magnitude.

    weight [out, in]: the base's. The rows' cosines with it are those of W + D, whatever m is (`turning`).
    """

    module: str
    weight: Float[Tensor, "out in"]
    low: LowRank
    ratio: Float[Tensor, "out"]
    factor: float = 1.0
    baseline: str = "base"

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.low.shape

    @property
    def _stretch(self) -> Float[Tensor, "out"]:
        """What multiplies the rows of W."""
        return self.factor * (self.ratio - 1)

    @property
    def _moved(self) -> LowRank:
        """factor * diag(ratio) D."""
        return replace(self.low, up=self.low.up.double() * (self.factor * self.ratio)[:, None])

    def tile(self, start: int, stop: int) -> Tensor:
        stretched = self._stretch[start:stop, None] * self.weight[start:stop].double()
        return stretched + (self.factor * self.ratio[start:stop, None]) * self.low.tile(start, stop)

    def apply(self, inputs: Tensor) -> Tensor:
        kind = inputs.dtype
        straight = (inputs @ self.weight.to(kind).T) * self._stretch.to(kind)
        return straight + self.low.apply(inputs) * (self.factor * self.ratio).to(kind)

    def row_squares(self) -> Tensor:
        stretch, ratio = self._stretch, self.factor * self.ratio
        lengths, dots = row_squares(self.weight), _wide(self.low).row_dots(self.weight)
        found = stretch**2 * lengths + 2 * stretch * ratio * dots + ratio**2 * self.low.row_squares()
        return found.clamp_min(0)

    def column_squares(self) -> Tensor:
        stretch, moved = self._stretch, self._moved
        crossed = replace(moved, up=moved.up * stretch[:, None])
        found = torch.zeros(self.shape[1], dtype=torch.float64, device=stretch.device)
        for start, stop in blocks(*self.shape):
            found += (stretch[start:stop, None] * self.weight[start:stop]).square().sum(0)
        return (found + 2 * crossed.column_dots(self.weight) + moved.column_squares()).clamp_min(0)

    def row_dots(self, weight: Matrix) -> Tensor:
        straight = [
            (self.weight[start:stop].double() * weight[start:stop]).sum(1)
            for start, stop in blocks(*self.shape)
        ]
        return self._stretch * torch.cat(straight) + self.factor * self.ratio * self.low.row_dots(weight)

    def column_dots(self, weight: Matrix) -> Tensor:
        found = self._moved.column_dots(weight)
        for start, stop in blocks(*self.shape):
            stretched = self._stretch[start:stop, None] * self.weight[start:stop].double()
            found = found + (stretched * weight[start:stop]).sum(0)
        return found

    def entries(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Tensor:
        straight = self._stretch[rows] * self.weight[rows, columns].double()
        return straight + (self.factor * self.ratio)[rows] * self.low.entries(rows, columns)

    def spectrum(self, k: int | None = None) -> Spectrum:
        return tile_spectrum(self, k)

    def along_output(self, directions: Tensor) -> Tensor:
        kind = precision(self.weight, directions)
        found = self._moved.along_output(directions)
        for start, stop in blocks(*self.shape):
            left = directions[:, start:stop].double() * self._stretch[start:stop]
            found = found + left.to(kind) @ self.weight[start:stop].to(kind)
        return found

    def along_input(self, directions: Tensor) -> Tensor:
        kind = precision(self.weight, directions)
        right = directions.to(kind).T
        straight = [self.weight[start:stop].to(kind) @ right for start, stop in blocks(*self.shape)]
        return torch.cat(straight).T.double() * self._stretch + self._moved.along_input(directions)

    def scaled(self, factor: float) -> Dora:
        return replace(self, factor=self.factor * factor)

    @property
    def rank_bound(self) -> int:
        return min(self.shape)

    @property
    def turning(self) -> LowRank:
        """The change that turns the rows exactly as this one does, without their new lengths."""
        return self.low

    def magnitude_drift(self) -> Float[Tensor, "out"]:
        """m_i / ||W_i|| - 1 of each row: how much longer it was made."""
        lengths = row_squares(self.weight).sqrt()
        return self.ratio * _moved_lengths(self.weight, self.low) / lengths.clamp_min(1e-300) - 1


def dora(module: str, weight: Float[Tensor, "out in"], low: LowRank, magnitude: Float[Tensor, "out"]) -> Dora:
    """The change of a DoRA layer with trained magnitudes.

    A magnitude that equals a row's own length to its stored precision is no change of length.
    """
    lengths = _moved_lengths(weight, low)
    kind = magnitude.dtype if magnitude.dtype.is_floating_point else torch.float32
    wanted = magnitude.detach().double()
    kept = ((wanted - lengths).abs() <= 8 * torch.finfo(kind).eps * lengths) | (lengths == 0)
    ratio = torch.where(kept, torch.ones_like(lengths), wanted / lengths.clamp_min(1e-300))
    return Dora(module, weight, low, ratio, baseline=low.baseline)


def row_squares(weight: Matrix) -> Float[Tensor, "out"]:
    """Squared lengths of a weight's rows, summed in float64."""
    tiles = (weight[start:stop] for start, stop in blocks(weight.shape[0], weight.shape[1]))
    return torch.cat([tile.double().square().sum(1) for tile in tiles])


def column_squares(weight: Matrix) -> Float[Tensor, "in"]:
    """Squared lengths of a weight's columns, summed in float64."""
    found = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for start, stop in blocks(weight.shape[0], weight.shape[1]):
        found += weight[start:stop].double().square().sum(0)
    return found


def _moved_lengths(weight: Tensor, low: LowRank) -> Tensor:
    """||W_i + D_i||."""
    squares = row_squares(weight) + 2 * _wide(low).row_dots(weight) + low.row_squares()
    return squares.clamp_min(0).sqrt()


def _wide(low: LowRank) -> LowRank:
    """In float64: the parts of a DoRA change may be larger than what they leave of each other."""
    return replace(low, up=low.up.double())
