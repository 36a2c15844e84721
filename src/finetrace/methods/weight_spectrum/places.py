"""What a matrix is, by its name and shape: its layer, its kind, and whether it reads or writes the residual stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["writes", "reads", "inner"]
# The last part of the name of what writes to the residual stream, in the families that transformers loads.
_WRITERS = frozenset(
    ["o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo"]
)
_EXPERT = re.compile(r"\[\d+\]$")


@dataclass(frozen=True)
class Place:
    """layer: -1 outside the blocks. kind: the name inside its layer, experts together. role: of the residual stream."""

    module: str
    layer: int
    kind: str
    role: Role


def place(module: str, shape: tuple[int, int], d_model: int, blocks: str) -> Place:
    """shape: [out, in]. blocks: the name of the list of layers, e.g. "model.layers". A matrix that does neither (d_model on
    no side, or on one by chance) is "inner"."""
    inside = module.removeprefix(f"{blocks}.")
    number, _, kind = inside.partition(".")
    layer = int(number) if inside != module and number.isdigit() else -1
    kind = _EXPERT.sub("", kind if layer >= 0 else module)
    return Place(module, layer, kind, _role(kind.rsplit(".", 1)[-1], shape, d_model))


def _role(name: str, shape: tuple[int, int], d_model: int) -> Role:
    """Square ones are told by their names; so is a fused expert's."""
    if name in _WRITERS:
        return "writes" if shape[0] == d_model else "inner"
    return "reads" if shape[1] == d_model else "inner"
