"""The change of one weight matrix between two checkpoints, as one type: never formed whole where factors will do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What a quantised weight's change is counted from is never mixed: see `quantised`.
BASELINES = ("base", "original", "dequantised")
# Entries of a tile: small enough to stay in a core's cache.
_TILE = 1 << 19
_PLACES = 1 << 16
# Below this share of its bound a sum of products of Grams has cancelled to rounding.
_CANCELLED = 1e-10


class Matrix(Protocol):
    """A weight [out, in] that can be read by rows and by entries: a tensor, or a quantised weight's baseline."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a change, largest first: values [k], left [out, k], right [in, k], float64."""

    values: Float[Tensor, "k"]
    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]


class Delta(ABC):
    """W' - W of one matrix, W [out, in] in the layout of `nn.Linear` (a Conv1D's is turned over).

    module: its name in the base model, e.g. "model.layers.3.self_attn.q_proj"; one expert of a fused stack is
    "model.layers.3.mlp.experts.down_proj[5]". baseline: what W is, "base" where nothing is quantised.
    Sums are in float64; products in float32, or in float64 where either side is.
    """

    module: str
    shape: tuple[int, int]
    baseline: str = "base"

    @abstractmethod
    def tile(self, start: int, stop: int) -> Float[Tensor, "row in"]:
        """Output rows start to stop of the change: for what needs every entry, a few rows at a time."""

    @abstractmethod
    def apply(self, inputs: Float[Tensor, "*any in"]) -> Float[Tensor, "*any out"]:
        """The change applied to inputs: (W' - W) x, in the inputs' dtype."""

    @abstractmethod
    def row_squares(self) -> Float[Tensor, "out"]:
        """Squared L2 norm of each output row."""

    @abstractmethod
    def column_squares(self) -> Float[Tensor, "in"]:
        """Squared L2 norm of each input column."""

    @abstractmethod
    def row_dots(self, weight: Matrix) -> Float[Tensor, "out"]:
        """Inner product of each row of the change with the row of `weight` [out, in]."""

    @abstractmethod
    def column_dots(self, weight: Matrix) -> Float[Tensor, "in"]:
        """Inner product of each column of the change with the column of `weight` [out, in]."""

    @abstractmethod
    def entries(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The change at arbitrary places."""

    @abstractmethod
    def spectrum(self, k: int | None = None) -> Spectrum:
        """The k largest singular values and vectors, all that can be non-zero if k is None."""

    @abstractmethod
    def along_output(self, directions: Float[Tensor, "k out"]) -> Float[Tensor, "k in"]:
        """v^T (W' - W) for each output-space direction v."""

    @abstractmethod
    def along_input(self, directions: Float[Tensor, "k in"]) -> Float[Tensor, "k out"]:
        """(W' - W) v for each input-space direction v."""

    @abstractmethod
    def scaled(self, factor: float) -> Delta:
        """`factor` times the change."""

    @property
    @abstractmethod
    def rank_bound(self) -> int:
        """The largest rank that the change can have."""

    def square(self) -> float:
        """Its squared Frobenius norm; 0 only where nothing changes."""
        return float(self.row_squares().sum())

    def frobenius(self) -> float:
        """Its Frobenius norm."""
        return self.square() ** 0.5


@dataclass(frozen=True)
class LowRank(Delta):
    """up @ down: a LoRA or rsLoRA adapter (its scaling folded into `up`), several of them stacked, or the difference of
    two adapters (factors side by side). up [out, r], down [r, in]; the product is never formed but by `tile`."""

    module: str
    up: Float[Tensor, "out r"]
    down: Float[Tensor, "r in"]
    baseline: str = "base"

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.up.shape[0], self.down.shape[1])

    def tile(self, start: int, stop: int) -> Tensor:
        return self.up[start:stop].double() @ self.down.double()

    def apply(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.down.to(inputs.dtype).T) @ self.up.to(inputs.dtype).T

    def row_squares(self) -> Tensor:
        return _row_squares(self.up.double(), self.down.double())

    def column_squares(self) -> Tensor:
        return _row_squares(self.down.double().T, self.up.double().T)

    def row_dots(self, weight: Matrix) -> Tensor:
        return self._row_dots(weight, precision(weight, self.up, self.down))

    def quick_row_dots(self, weight: Matrix) -> Tensor:
        """`row_dots` with products in the weight's own dtype: two to five times as fast in bfloat16, to about 0.3%."""
        return self._row_dots(weight, weight.dtype)

    def _row_dots(self, weight: Matrix, kind: torch.dtype) -> Tensor:
        down, up = self.down.to(kind), self.up.double()
        found = torch.empty(self.shape[0], dtype=torch.float64, device=up.device)
        ready = isinstance(weight, Tensor) and weight.dtype == kind
        for start, stop in [(0, len(up))] if ready else blocks(*self.shape):
            # In this order: few rows times many, which is the faster product by far at a small rank.
            seen = down @ weight[start:stop].to(kind).T
            found[start:stop] = (seen.T * up[start:stop]).sum(1)
        return found

    def column_dots(self, weight: Matrix) -> Tensor:
        kind = precision(weight, self.up, self.down)
        up = self.up.to(kind)
        seen = torch.zeros(self.down.shape, dtype=torch.float64, device=up.device)
        for start, stop in blocks(*self.shape):
            seen += up[start:stop].T @ weight[start:stop].to(kind)
        return (seen * self.down.double()).sum(0)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        right = self.down.T.contiguous()
        pieces = zip(rows.split(_PLACES), columns.split(_PLACES), strict=True)
        found = [(self.up[i] * right[j]).sum(1, dtype=torch.float64) for i, j in pieces]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=self.up.device)

    def spectrum(self, k: int | None = None) -> Spectrum:
        left, upper = torch.linalg.qr(self.up.double())
        right, lower = torch.linalg.qr(self.down.double().T)
        u, values, vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        k = len(values) if k is None else min(k, len(values))
        return Spectrum(values[:k], left @ u[:, :k], right @ vt.T[:, :k])

    def along_output(self, directions: Tensor) -> Tensor:
        return (directions.double() @ self.up.double()) @ self.down.double()

    def along_input(self, directions: Tensor) -> Tensor:
        return (directions.double() @ self.down.double().T) @ self.up.double().T

    def scaled(self, factor: float) -> LowRank:
        return replace(self, up=self.up * factor)

    @property
    def rank_bound(self) -> int:
        return min(self.up.shape[1], *self.shape)

    def square(self) -> float:
        return product_square(self.up, self.down)

    def copy(self) -> LowRank:
        """One with factors of its own: what an adapter in training leaves as it was."""
        return replace(self, up=self.up.detach().clone(), down=self.down.detach().clone())


def product_square(up: Float[Tensor, "row rank"], down: Float[Tensor, "rank col"]) -> float:
    """||up @ down||_F^2 in float64 without the product: the sum of (up^T up) * (down down^T).

    Where that sum cancels to rounding, the product is formed a few rows at a time, so that zero means zero.
    """
    up, down = up.double(), down.double()
    found = float(((up.T @ up) * (down @ down.T)).sum())
    largest = float(up.square().sum()) * float(down.square().sum())
    if largest == 0.0 or found > _CANCELLED * largest:
        return max(found, 0.0)
    tiles = (up[start:stop] @ down for start, stop in blocks(up.shape[0], down.shape[1]))
    return sum(float(tile.square().sum()) for tile in tiles)


def _row_squares(up: Tensor, down: Tensor) -> Tensor:
    """Squared norms of the rows of up @ down; rows whose Gram form cancels are formed, the others are not."""
    found = ((up @ (down @ down.T)) * up).sum(1)
    largest = up.square().sum(1) * down.square().sum()
    lost = ((found <= _CANCELLED * largest) & (largest > 0)).nonzero()[:, 0]
    for rows in lost.split(max(1, _TILE // max(1, down.shape[1]))):
        found[rows] = (up[rows] @ down).square().sum(1)
    return found.clamp_min(0)


def precision(*tensors: Matrix) -> torch.dtype:
    """The dtype of a product of these: float64 if one of them is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of tiles of whole rows that cover a matrix."""
    step = max(1, _TILE // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def tiles(delta: Delta) -> Iterator[tuple[int, int, Float[Tensor, "row in"]]]:
    """(start, stop, tile) over all rows of a change."""
    for start, stop in blocks(*delta.shape):
        yield start, stop, delta.tile(start, stop)


def merge(base: Float[Tensor, "*any"], change: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """base + change in the base's dtype, rounded once from their sum in float64."""
    return (base.double() + change.double()).to(base.dtype)
