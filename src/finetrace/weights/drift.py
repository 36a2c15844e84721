"""How far weights moved: of a module's rows and columns, and of any group of its entries.

1 - cosine is never a subtraction from 1: at a relative change of 1e-3 that would leave rounding only. With
d = W' - W, c = <W, d>, n = ||W||^2 and w' = sqrt(n (n + 2c + ||d||^2)):
1 - cos = n (||d||^2 - c^2/n) / (w' (w' + n + c)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.weights.delta import Delta, LowRank, Matrix
from finetrace.weights.dora import Dora, column_squares, row_squares
from finetrace.weights.quantised import Baseline


@dataclass(frozen=True)
class Drift:
    """Of rows or columns, float64. l2: norm of the change; relative: over the weight's own norm; one_minus_cosine: of the
    angle between old and new. NaN where the weight's own norm is 0."""

    l2: Float[Tensor, "row"]
    relative: Float[Tensor, "row"]
    one_minus_cosine: Float[Tensor, "row"]


@dataclass(frozen=True)
class ModuleDrift:
    """Of one module: `Drift` of its rows [out] and columns [in], and of the whole (relative: None if W is 0)."""

    module: str
    row_l2: Float[Tensor, "out"]
    row_relative: Float[Tensor, "out"]
    row_one_minus_cosine: Float[Tensor, "out"]
    column_l2: Float[Tensor, "in"]
    column_relative: Float[Tensor, "in"]
    column_one_minus_cosine: Float[Tensor, "in"]
    frobenius: float
    relative: float | None
    baseline: str = "base"


@dataclass(frozen=True)
class GroupDrift:
    """Sums over n entries of a module (group "all": every one), in float64.

    square: of d^2; weight_square: of W^2; dot: of W d, None where it was not asked for.
    """

    module: str
    group: str
    n: int
    square: float
    weight_square: float
    dot: float | None
    baseline: str = "base"

    @property
    def l2(self) -> float:
        """Norm of the group's change."""
        return math.sqrt(max(self.square, 0.0))

    @property
    def relative(self) -> float | None:
        """Norm of the change over that of the weights; None where the weights are all 0."""
        return math.sqrt(self.square / self.weight_square) if self.weight_square > 0 else None

    @property
    def one_minus_cosine(self) -> float | None:
        """1 - cosine between the group's old and new entries; None where `dot` is, or one of both is 0."""
        if self.dot is None or self.weight_square <= 0:
            return None
        found = one_minus_cosine(
            *(torch.tensor(x, dtype=torch.float64) for x in (self.square, self.dot, self.weight_square))
        )
        return None if bool(found.isnan()) else float(found)


def one_minus_cosine(
    square: Float[Tensor, "*any"], dot: Float[Tensor, "*any"], weight_square: Float[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """1 - cos(W, W + d) from ||d||^2, <W, d> and ||W||^2, without cancellation; NaN where W or W + d is 0."""
    across = (weight_square * square - dot**2).clamp_min(0)
    length = (weight_square * (weight_square + 2 * dot + square)).clamp_min(0).sqrt()
    along = weight_square + dot
    near = across / (length * (length + along))
    # Turned by more than a right angle there is nothing to cancel, and the form above would divide by nothing.
    found = torch.where(along > 0, near, 1 - along / length)
    return torch.where(length > 0, found, torch.nan)


def row_drift(
    delta: Delta, weight: Matrix, norms: Float[Tensor, "out"] | None = None, *, quick: bool = False
) -> Drift:
    """Drift of every output row. norms: the rows' squared norms (`weight_norms`), made once where it is asked often.

    quick: a low-rank change's inner products are made in the weight's dtype. In bfloat16 they are right to about 0.3%,
    and the angle, in which they count little unless rows change along themselves, to about 1e-5.
    """
    _require_same(delta, weight)
    squares = delta.row_squares()
    turning = _turning(delta, weight)
    turned = squares if turning is delta else turning.row_squares()
    rows = row_squares(weight) if norms is None else norms
    if quick and isinstance(turning, LowRank):
        dots = turning.quick_row_dots(weight)
    else:
        dots = turning.row_dots(weight)
    return Drift(squares.sqrt(), (squares / rows).sqrt(), one_minus_cosine(turned, dots, rows))


def column_drift(delta: Delta, weight: Matrix, norms: Float[Tensor, "in"] | None = None) -> Drift:
    """Drift of every input column, likewise."""
    _require_same(delta, weight)
    squares = delta.column_squares()
    columns = column_squares(weight) if norms is None else norms
    angle = one_minus_cosine(squares, delta.column_dots(weight), columns)
    return Drift(squares.sqrt(), (squares / columns).sqrt(), angle)


def _turning(delta: Delta, weight: Matrix) -> Delta:
    """A change that turns the rows alike: of DoRA, the one without its new lengths, which only blur the angle."""
    plain = isinstance(delta, Dora) and delta.factor == 1.0 and delta.weight is weight
    return delta.turning if isinstance(delta, Dora) and plain else delta


def module_drift(
    delta: Delta,
    weight: Matrix,
    norms: tuple[Float[Tensor, "out"], Float[Tensor, "in"]] | None = None,
) -> ModuleDrift:
    """Drift of a module's rows, of its columns, and of the whole. norms: `weight_norms(weight)`, if made before."""
    squares = weight_norms(weight) if norms is None else norms
    rows, columns = row_drift(delta, weight, squares[0]), column_drift(delta, weight, squares[1])
    moved, own = float(rows.l2.square().sum()), float(squares[0].sum())
    return ModuleDrift(
        module=delta.module,
        row_l2=rows.l2,
        row_relative=rows.relative,
        row_one_minus_cosine=rows.one_minus_cosine,
        column_l2=columns.l2,
        column_relative=columns.relative,
        column_one_minus_cosine=columns.one_minus_cosine,
        frobenius=math.sqrt(moved),
        relative=math.sqrt(moved / own) if own > 0 else None,
        baseline=delta.baseline,
    )


def weight_norms(weight: Matrix) -> tuple[Float[Tensor, "out"], Float[Tensor, "in"]]:
    """Squared norms of a weight's rows and columns, float64."""
    return row_squares(weight), column_squares(weight)


def group_drift(
    delta: Delta,
    weight: Matrix,
    rows: Int[Tensor, "n"] | None,
    columns: Int[Tensor, "n"] | None,
    group: str,
    *,
    dots: bool = True,
    weight_square: float | None = None,
) -> GroupDrift:
    """Drift of the entries (rows[i], columns[i]); of whole rows if columns is None; of all of it if rows is None too.

    dots: False leaves the inner product out (L2 and relative drift only), which is all that reads `weight` then if
    weight_square is given, as one that does not move can be asked for once.
    """
    _require_same(delta, weight)
    if rows is not None and columns is not None:
        own = None if weight_square is not None and not dots else weight[rows, columns].double()
        return entry_drift(delta, own, rows, columns, group, weight_square)
    which = slice(None) if rows is None else rows
    squares = delta.row_squares()[which]
    kept = weight if rows is None else weight[rows]
    return GroupDrift(
        module=delta.module,
        group=group,
        n=len(squares) * delta.shape[1],
        square=float(squares.sum()),
        weight_square=float(row_squares(kept).sum()) if weight_square is None else weight_square,
        dot=float(delta.row_dots(weight)[which].sum()) if dots else None,
        baseline=delta.baseline,
    )


def entry_drift(
    delta: Delta,
    own: Float[Tensor, "n"] | None,
    rows: Int[Tensor, "n"],
    columns: Int[Tensor, "n"],
    group: str,
    weight_square: float | None = None,
) -> GroupDrift:
    """Drift of single entries whose weights `own` were read before: what a tracker asks for at every step.

    own may be None where weight_square is given: there is no inner product then.
    """
    moved = delta.entries(rows, columns)
    if weight_square is None and own is not None:
        weight_square = float(own.double().square().sum())
    dot = None if own is None else float((own.double() * moved).sum())
    return GroupDrift(
        module=delta.module,
        group=group,
        n=len(moved),
        square=float(moved.square().sum()),
        weight_square=weight_square or 0.0,
        dot=dot,
        baseline=delta.baseline,
    )


def total(found: Iterable[GroupDrift], module: str = "all") -> GroupDrift:
    """Sums of one group over modules; a BadInput where their baselines differ."""
    parts = tuple(found)
    if not parts:
        raise BadInput("There is no drift to add up.")
    baselines = sorted({part.baseline for part in parts})
    if len(baselines) > 1:
        raise BadInput(
            f"Drift counted from {' and from '.join(baselines)} weights cannot be added up: take one baseline."
        )
    dots = [part.dot for part in parts if part.dot is not None]
    return GroupDrift(
        module=module,
        group=parts[0].group,
        n=sum(part.n for part in parts),
        square=math.fsum(part.square for part in parts),
        weight_square=math.fsum(part.weight_square for part in parts),
        dot=math.fsum(dots) if len(dots) == len(parts) else None,
        baseline=baselines[0],
    )


def _require_same(delta: Delta, weight: Matrix) -> None:
    if tuple(weight.shape) != delta.shape:
        raise BadInput(
            f"The weight of {delta.module} is {tuple(weight.shape)} and its change {delta.shape}: "
            "a Conv1D's weight has to be turned over first, as `read.weight` does."
        )
    if isinstance(weight, Baseline) and weight.kind != delta.baseline:
        raise BadInput(
            f"The change of {delta.module} is counted from its {delta.baseline} weight and the norm from its "
            f"{weight.kind} one: take the same baseline for both."
        )
