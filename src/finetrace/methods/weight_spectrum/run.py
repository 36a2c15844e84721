"""From the two sides' weights to the Result: every changed matrix once, then what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetrace.core.result import Columns
from finetrace.engine import Desk
from finetrace.methods.weight_spectrum import Config
from finetrace.methods.weight_spectrum.figures import Change, change
from finetrace.methods.weight_spectrum.merged import ranks
from finetrace.methods.weight_spectrum.places import Place, place
from finetrace.methods.weight_spectrum.readout import directions
from finetrace.methods.weight_spectrum.removed import removed
from finetrace.methods.weight_spectrum.result import (
    SLICE,
    Result,
    Totals,
    modules_table,
    numbers,
    singular_values,
)
from finetrace.models import Pair
from finetrace.models.architecture import anatomy
from finetrace.weights import Delta
from finetrace.weights.delta import Matrix
from finetrace.weights.quantised import baseline, is_quantised
from finetrace.weights.read import matrices, others, plain_name

# Singular values of a matrix that a Result keeps.
_KEPT = 32
_ROWS = 1 << 10
# What PEFT adds to a model: no part of the base.
_ADAPTERS = ("lora_", "modules_to_save.", "trainable_tokens_")


def run(config: Config, desk: Desk, seen: None = None) -> Result:
    """The whole of it; nothing is read but weights."""
    with torch.no_grad():
        base = desk.once("base", lambda: read_base(desk.pair))
        deltas = desk.deltas()
        with desk.pair.open("base") as model:
            weights = _weights(model)
            pairs = []
            for done, (module, delta) in enumerate(deltas.items()):
                desk.advance(done, len(deltas))
                pairs.append((_change(config, delta, base.places[module], base.squares[module]), delta))
            found = removed(pairs, lambda module: weights[module])
        changes = [one for one, _ in pairs]
        other = _others(desk)
        others_square = math.fsum(float(size) ** 2 for size in other.data["frobenius"])
        flagged = found is not None and found.flagged
        grid_square, grid_weight = _grids(base, changes, desk.pair.n_layers)
        figures = numbers(changes, others_square, base.totals, grid_square.sum(0), found)
        return Result(
            numbers=figures,
            slices={SLICE: dict(figures)},
            totals=base.totals,
            kinds=base.kinds,
            grid_square=grid_square,
            grid_weight=grid_weight,
            modules=modules_table(changes),
            others=other,
            singular=singular_values(changes, _KEPT),
            ranks=ranks(pairs),
            removed=found,
            directions=()
            if flagged
            else directions(
                changes, desk.subject, modules=config.modules, count=config.directions, tokens=config.tokens
            ),
            baseline=next(iter(deltas.values())).baseline if deltas else "base",
        )


def _change(config: Config, delta: Delta, where: Place, weight_square: float) -> Change:
    return change(delta, where, weight_square, exact=config.exact, leading=config.leading)


@dataclass(frozen=True)
class Base:
    """What does not depend on the other side. places, squares (squared norm): of every matrix, by module. kinds: of those
    inside the blocks."""

    totals: Totals
    places: Mapping[str, Place]
    squares: Mapping[str, float]
    kinds: tuple[str, ...]


def read_base(pair: Pair) -> Base:
    with pair.open("base") as model:
        weights = _weights(model)
        squares = {name: _square(weight) for name, weight in weights.items()}
        shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
        rest, count = _rest(model, weights)
        blocks = _blocks(model)
    places = {name: place(name, shape, pair.d_model, blocks) for name, shape in shapes.items()}
    total = math.fsum(squares.values()) + rest
    matrices_count = sum(rows * columns for rows, columns in shapes.values())
    kinds = tuple(dict.fromkeys(one.kind for one in places.values() if one.layer >= 0))
    return Base(Totals(total, matrices_count + count, len(weights)), places, squares, kinds)


def _weights(model: Any) -> dict[str, Matrix]:
    """Every linear layer's and expert's weight [out, in]; of quantised ones, what they compute with. A head that is the
    embedding itself is left out: it is counted there."""
    tied = {tensor.data_ptr() for tensor in model.get_input_embeddings().parameters()}
    quantised = {
        plain_name(name): baseline(module) for name, module in model.named_modules() if is_quantised(module)
    }
    plain: dict[str, Matrix] = {
        name: weight for name, weight in matrices(model) if weight.data_ptr() not in tied
    }
    return {name: quantised.get(name, weight) for name, weight in plain.items()}


def _blocks(model: Any) -> str:
    """The name of the list of layers, as it was before PEFT wrapped anything."""
    blocks = anatomy(model).blocks
    return plain_name(next(name for name, module in model.named_modules() if module is blocks))


def _square(weight: Matrix, other: Matrix | None = None) -> float:
    """Squared norm of a parameter, or of its difference from another, some rows at a time."""
    found = []
    for start in range(0, weight.shape[0], _ROWS):
        rows = weight[start : start + _ROWS].double()
        rows = rows if other is None else rows - other[start : start + _ROWS].double()
        found.append(float(rows.square().sum()))
    return math.fsum(found)


def _rest(model: Any, weights: Mapping[str, Matrix]) -> tuple[float, int]:
    """Squared norm and count of all parameters that are no matrix of `weights`."""
    stacks = {name.partition("[")[0] for name in weights}
    square, count = [0.0], 0
    for name, tensor in model.named_parameters():
        if any(part in name for part in _ADAPTERS):
            continue
        plain = plain_name(name)
        if plain.removesuffix(".weight") in weights or plain in stacks:
            continue
        square.append(_square(tensor.detach().reshape(-1) if tensor.ndim == 0 else tensor.detach()))
        count += tensor.numel()
    return math.fsum(square), count


def _grids(base: Base, changes: list[Change], layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms of the changes and of the base's weights, [kind, layer]."""
    row = {kind: number for number, kind in enumerate(base.kinds)}
    moved, own = (np.zeros((len(row), layers)) for _ in range(2))
    for module, where in base.places.items():
        if where.layer >= 0:
            own[row[where.kind], where.layer] += base.squares[module]
    for one in changes:
        if one.place.layer >= 0:
            moved[row[one.place.kind], one.place.layer] += one.square
    return moved, own


def _others(desk: Desk) -> Columns:
    """Changed parameters that are no matrix of a layer, with the size of their change at this contrast's scale."""
    names, sizes, relative = [], [], []
    for name, (before, after) in others(desk.pair, desk.side).items():
        size, own = math.sqrt(_square(after, before)) * desk.scale, math.sqrt(_square(before))
        names.append(name)
        sizes.append(size)
        relative.append(size / own if own > 0 else math.nan)
    return Columns({"parameter": names, "frobenius": np.array(sizes), "relative": np.array(relative)})
