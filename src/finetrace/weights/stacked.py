"""Changes put together: several adapters at once, or one checkpoint against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.weights.delta import Delta, LowRank, Matrix, Spectrum
from finetrace.weights.dense import tile_column_squares, tile_row_squares, tile_spectrum


@dataclass(frozen=True)
class Combined(Delta):
    """The sum of changes of one module that have no common factors; what is linear in them is asked of each part."""

    parts: tuple[Delta, ...]

    @property
    def module(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].module

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].shape

    @property
    def baseline(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].baseline

    def tile(self, start: int, stop: int) -> Tensor:
        return _sum([part.tile(start, stop) for part in self.parts])

    def apply(self, inputs: Tensor) -> Tensor:
        return _sum([part.apply(inputs) for part in self.parts])

    def row_squares(self) -> Tensor:
        return tile_row_squares(self)

    def column_squares(self) -> Tensor:
        return tile_column_squares(self)

    def row_dots(self, weight: Matrix) -> Tensor:
        return _sum([part.row_dots(weight) for part in self.parts])

    def column_dots(self, weight: Matrix) -> Tensor:
        return _sum([part.column_dots(weight) for part in self.parts])

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return _sum([part.entries(rows, columns) for part in self.parts])

    def spectrum(self, k: int | None = None) -> Spectrum:
        return tile_spectrum(self, k)

    def along_output(self, directions: Tensor) -> Tensor:
        return _sum([part.along_output(directions) for part in self.parts])

    def along_input(self, directions: Tensor) -> Tensor:
        return _sum([part.along_input(directions) for part in self.parts])

    def scaled(self, factor: float) -> Combined:
        return Combined(tuple(part.scaled(factor) for part in self.parts))

    @property
    def rank_bound(self) -> int:
        return min(sum(part.rank_bound for part in self.parts), *self.shape)


def stacked(parts: Sequence[Delta], weights: Sequence[float] | None = None) -> Delta:
    """The sum of changes of one module, each times its weight; of low-rank ones, one low-rank change (ranks add up)."""
    if not parts:
        raise BadInput("There is no change to stack.")
    _require_alike(parts)
    if weights is not None:
        parts = [part.scaled(factor) for part, factor in zip(parts, weights, strict=True)]
    if len(parts) == 1:
        return parts[0]
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) < len(parts):
        return Combined(tuple(parts))
    up = torch.cat([part.up.double() for part in low], 1)
    return replace(low[0], up=up, down=torch.cat([part.down.double() for part in low]))


def difference(after: Delta, before: Delta) -> Delta:
    """`after` - `before`: two adapters, two checkpoints of one, or an adapter and the factors that it started from.

    Two adapters of one rank r: (B' - B) A' + B (A' - A), of rank 2r, which does not cancel where they are near.
    """
    _require_alike((after, before))
    if not (isinstance(after, LowRank) and isinstance(before, LowRank)):
        return stacked([after, before], [1.0, -1.0])
    if after.up.shape != before.up.shape:
        return stacked([after, before], [1.0, -1.0])
    old_up, old_down = before.up.double(), before.down.double()
    up = torch.cat([after.up.double() - old_up, old_up], 1)
    down = torch.cat([after.down.double(), after.down.double() - old_down])
    return replace(after, up=up, down=down)


def _require_alike(parts: Sequence[Delta]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.module != first.module or part.shape != first.shape:
            raise BadInput(
                f"The changes of {first.module} {first.shape} and {part.module} {part.shape} are not of one "
                "matrix: only changes of the same module can be put together."
            )
        if part.baseline != first.baseline:
            raise BadInput(
                f"The changes of {first.module} are counted from different weights ({first.baseline} and "
                f"{part.baseline}): take the same baseline for both."
            )


def _sum(found: Sequence[Tensor]) -> Tensor:
    total = found[0]
    for one in found[1:]:
        total = total + one
    return total
