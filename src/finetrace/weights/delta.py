"""The change of one weight matrix between two checkpoints, as one type: never formed whole where factors will do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of a change, largest first: values [k], left [out, k], right [in, k], float64."""

    values: Float[Tensor, "k"]
    left: Float[Tensor, "out k"]
    right: Float[Tensor, "in k"]


class Delta(ABC):
    """W' - W of one matrix, W [out, in] in the layout of `nn.Linear` (a Conv1D's is turned over).

    module: its name in the base model, e.g. "model.layers.3.self_attn.q_proj". Sums are in float64.
    """

    module: str
    shape: tuple[int, int]

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
    def row_dots(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
        """Inner product of each row of the change with the row of `weight`."""

    @abstractmethod
    def column_dots(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "in"]:
        """Inner product of each column of the change with the column of `weight`."""

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

    def frobenius(self) -> float:
        """Its Frobenius norm."""
        return float(self.row_squares().sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class LowRank(Delta):
    """up @ down: a LoRA or rsLoRA adapter (its scaling folded into `up`), several of them stacked, or the difference of
    two adapters (factors side by side). up [out, r], down [r, in]."""

    module: str
    up: Float[Tensor, "out r"]
    down: Float[Tensor, "r in"]

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.up.shape[0], self.down.shape[1])

    def tile(self, start: int, stop: int) -> Tensor:
        return self.up[start:stop].double() @ self.down.double()

    def apply(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.down.to(inputs.dtype).T) @ self.up.to(inputs.dtype).T

    def row_squares(self) -> Tensor:
        up, down = self.up.double(), self.down.double()
        return ((up @ (down @ down.T)) * up).sum(1).clamp_min(0)

    def column_squares(self) -> Tensor:
        up, down = self.up.double(), self.down.double()
        return (((up.T @ up) @ down) * down).sum(0).clamp_min(0)

    def row_dots(self, weight: Tensor) -> Tensor:
        return ((weight.double() @ self.down.double().T) * self.up.double()).sum(1)

    def column_dots(self, weight: Tensor) -> Tensor:
        return ((self.up.double().T @ weight.double()) * self.down.double()).sum(0)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (self.up[rows].double() * self.down.T[columns].double()).sum(1)

    def spectrum(self, k: int | None = None) -> Spectrum:
        left, upper = torch.linalg.qr(self.up.double())
        right, lower = torch.linalg.qr(self.down.double().T)
        u, values, vt = torch.linalg.svd(upper @ lower.T)
        k = len(values) if k is None else min(k, len(values))
        return Spectrum(values[:k], left @ u[:, :k], right @ vt.T[:, :k])

    def along_output(self, directions: Tensor) -> Tensor:
        return (directions.double() @ self.up.double()) @ self.down.double()

    def along_input(self, directions: Tensor) -> Tensor:
        return (directions.double() @ self.down.double().T) @ self.up.double().T

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.module, self.up * factor, self.down)

    @property
    def rank_bound(self) -> int:
        return min(self.up.shape[1], *self.shape)
