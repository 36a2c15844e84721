"""The cases `drift` and `drift-attention`: how far an adapter moved every output row of a model, per layer and module.

L2, relative and 1 - cosine of each row, from the factors, or with the changed weight formed and compared with a copy of
the first one. All linear layers at rank 16, or the four of attention at rank 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from finetrace.weights.delta import LowRank
from finetrace.weights.dora import row_squares
from finetrace.weights.drift import row_drift

# A relative change of 5e-4, as of a short training.
_SIZE = 5e-4


@dataclass(frozen=True)
class _Adapted:
    """A module in training. first: the copy that the peer keeps of its first weights, float32; norms: what we keep."""

    weight: Tensor
    delta: LowRank
    first: Tensor
    norms: Tensor


def case(preset: Preset, dtype: torch.dtype) -> Case:
    """All linear layers."""
    return _case("drift", 16, preset.layers * preset.block_shapes(), dtype, 70)


def attention_case(preset: Preset, dtype: torch.dtype) -> Case:
    """The four linear layers of attention."""
    return _case("drift-attention", 8, preset.layers * preset.block_shapes()[:4], dtype, 15)


def _case(name: str, rank: int, shapes: list[tuple[int, int]], dtype: torch.dtype, least: float) -> Case:
    entries = sum(i * o for i, o in shapes)
    product = 2 * rank * entries
    bare = [(rank, i, o) for i, o in shapes]

    def arm(work: Any, flop: int, kept: int) -> Arm:
        return Arm(lambda: _over(dtype, rank, shapes, work), flop, {"kept": kept})

    own = sum(o for _, o in shapes)
    arms = {
        "peer": arm(_peer, product, 4 * entries),
        "merged": arm(_merged, product, dtype.itemsize * entries),
        "ours": arm(_ours, product, 8 * own),
        "ours_quick": arm(_ours_quick, product, 8 * own),
        "ours_l2": arm(_ours_l2, 0, 8 * own),
        "floor": Arm(lambda: products(bare, dtype), product),
    }
    return Case(
        name, arms, "work", partial(goal, least), ("ours_quick",), lambda: accuracy(dtype, rank, shapes[0])
    )


def _adapted(shape: tuple[int, int], rank: int, dtype: torch.dtype, generator: torch.Generator) -> _Adapted:
    """Weights of deviation 0.02 and a change of _SIZE of their norm."""
    into, out = shape
    weight = (0.02 * torch.randn(out, into, generator=generator)).to(dtype)
    up, down = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
    delta = LowRank("m", up * (0.02 * _SIZE / rank**0.5), down)
    return _Adapted(weight, delta, weight.float(), row_squares(weight))


def _over(dtype: torch.dtype, rank: int, shapes: list[tuple[int, int]], work: Any) -> Work:
    generator = torch.Generator().manual_seed(0)
    modules = [_adapted(shape, rank, dtype, generator) for shape in shapes]

    @torch.inference_mode()
    def call() -> None:
        for module in modules:
            work(module)

    return call


def _peer(module: _Adapted) -> tuple[Tensor, Tensor, Tensor]:
    """The changed weight is formed in float32 and compared with the first."""
    now = module.first + module.delta.up @ module.delta.down
    return _compared(module.first, now)


def _merged(module: _Adapted) -> tuple[Tensor, Tensor, Tensor]:
    """Merged in the model's dtype first, as `merge_and_unload` does, and compared there."""
    now = module.weight + (module.delta.up @ module.delta.down).to(module.weight.dtype)
    return _compared(module.weight, now)


def _compared(first: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    l2 = (now - first).norm(dim=1)
    return l2, l2 / first.norm(dim=1), 1 - torch.nn.functional.cosine_similarity(first, now, dim=1)


def _ours(module: _Adapted) -> tuple[Tensor, Tensor, Tensor]:
    found = row_drift(module.delta, module.weight, module.norms)
    return found.l2, found.relative, found.one_minus_cosine


def _ours_quick(module: _Adapted) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products in the weights' dtype."""
    found = row_drift(module.delta, module.weight, module.norms, quick=True)
    return found.l2, found.relative, found.one_minus_cosine


def _ours_l2(module: _Adapted) -> tuple[Tensor, Tensor]:
    squares = module.delta.row_squares()
    return squares.sqrt(), (squares / module.norms).sqrt()


_ANGLES = {"peer": _peer, "merged": _merged, "ours": _ours, "ours_quick": _ours_quick}


@torch.inference_mode()
def accuracy(dtype: torch.dtype, rank: int, shape: tuple[int, int]) -> list[dict[str, float]]:
    """Median relative error of the rows' L2 and 1 - cosine of one module against float64, at changes from 5e-3 to 5e-5."""
    rows = []
    for size in (10.0, 1.0, 0.1):
        module = _adapted(shape, rank, dtype, torch.Generator().manual_seed(1))
        module = _Adapted(module.weight, module.delta.scaled(size), module.first, module.norms)
        change, first = module.delta.up.double() @ module.delta.down.double(), module.weight.double()
        across = change - (change * first).sum(1, keepdim=True) / first.square().sum(1, keepdim=True) * first
        moved = first + change
        sine = across.square().sum(1) / moved.square().sum(1)
        true = change.norm(dim=1), sine / (1 + (1 - sine).sqrt())
        row = {"relative": _SIZE * size}
        for name, way in _ANGLES.items():
            l2, _, angle = way(module)
            for what, found, wanted in (("l2", l2, true[0]), ("angle", angle, true[1])):
                row[f"{name}_{what}"] = float(f"{float(((found - wanted).abs() / wanted).median()):.3g}")
        rows.append(row)
    return rows


def goal(least: float, figures: Mapping[str, Any]) -> dict[str, Any]:
    """So many times as fast as forming the change, with an error that the formed one does not reach."""
    arms = figures["arms"]
    error = max(row["ours_quick_angle"] for row in figures["accuracy"])
    return {
        "name": f"L2, relative and 1 - cosine of every row: >= {least} times forming the change; error <= 1e-4",
        "measured": {name: arms[name]["ratio"] for name in arms if "ours" in name} | {"error": error},
        "bound": round(arms["peer"]["seconds"] / arms["floor"]["seconds"], 2),
        "reached": arms["ours_quick"]["ratio"]["median"] >= least and error <= 1e-4,
    }
