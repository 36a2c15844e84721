"""Weights that bitsandbytes holds in 4 or 8 bits, and the two things that a change of them can be counted from.

"dequantised": what the layer computes with, which is what a QLoRA adapter adds to: the change is the adapter's alone.
"original": the weights before they were quantised: the change is the quantisation's error, which is dense and mostly the
larger part, and the adapter's. The two are never mixed: changes, drift and weights carry which one they are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import BadInput
from finetrace.weights.delta import BASELINES, Delta, LowRank, Matrix, blocks
from finetrace.weights.dense import Dense
from finetrace.weights.stacked import stacked

_FOUR, _EIGHT = "Params4bit", "Int8Params"


@dataclass(frozen=True)
class Baseline:
    """The weight [out, in] that a quantised module's change is counted from, read a few rows at a time.

    Rows (`baseline[start:stop]`, `baseline[rows]`) and single entries (`baseline[rows, columns]`) are made when asked
    for. entries: the values at any places, given as row and column ids that broadcast.
    """

    module: str
    kind: str
    shape: tuple[int, int]
    device: torch.device
    entries: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype = torch.float32

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, tuple):
            return self.entries(*index)
        rows = torch.arange(self.shape[0], device=self.device)[index]
        return self.entries(rows[:, None], torch.arange(self.shape[1], device=self.device))

    def tensor(self) -> Float[Tensor, "out in"]:
        """All of it."""
        return torch.cat([self[start:stop] for start, stop in blocks(*self.shape)])


def is_quantised(module: nn.Module) -> bool:
    """Whether bitsandbytes holds this layer's weight in 4 or 8 bits."""
    return _kind(module) in {_FOUR, _EIGHT}


def _kind(module: nn.Module) -> str:
    return type(module._parameters.get("weight")).__name__


def baseline(
    module: nn.Module, kind: str = "dequantised", *, name: str = "", original: Matrix | None = None
) -> Baseline:
    """A quantised module's weight of one kind; "original" is not kept by the module and has to be given [out, in]."""
    if not is_quantised(module):
        raise BadInput(f"The module {name or type(module).__name__} is not quantised by bitsandbytes.")
    if kind == "dequantised":
        return _four_bits(module, name) if _kind(module) == _FOUR else _eight_bits(module, name)
    if kind != "original":
        raise BadInput(f"A quantised weight has the baselines original and dequantised, not '{kind}'.")
    if original is None:
        raise BadInput(
            f"The original weight of {name or 'the module'} is not kept by its quantised layer: "
            "give the checkpoint that it was quantised from."
        )
    shape = (original.shape[0], original.shape[1])
    return Baseline(name, kind, shape, original.device, lambda i, j: original[i, j], original.dtype)


def against(delta: LowRank, module: nn.Module, kind: str, original: Matrix | None = None) -> Delta:
    """An adapter's change of a quantised module, counted from one of its baselines."""
    if kind not in BASELINES[1:]:
        raise BadInput(f"A quantised weight has the baselines original and dequantised, not '{kind}'.")
    marked = replace(delta, baseline=kind)
    if kind == "dequantised":
        return marked
    return stacked([quantisation_error(module, original, delta.module), marked])


def quantisation_error(module: nn.Module, original: Matrix | None, name: str = "") -> Dense:
    """What quantising alone changed: dequantised - original, of a module."""
    before = baseline(module, "original", name=name, original=original)
    after = baseline(module, "dequantised", name=name)
    if before.shape != after.shape:
        raise BadInput(
            f"The original weight of {name} is {before.shape} and the quantised one {after.shape}: "
            "they are not of one checkpoint."
        )
    return Dense(name, before, after, baseline="original")


def _four_bits(module: Any, name: str) -> Baseline:
    """NF4 or FP4, with or without double quantisation: two values in a byte, the first in the upper half."""
    state = module.weight.quant_state
    if state is None:
        raise BadInput(
            f"The 4-bit weight of {name or 'the module'} is not quantised yet: move it to its device."
        )
    if state.__dict__.get("packing_format_for_cpu", False):
        raise BadInput(
            f"bitsandbytes has repacked the 4-bit weight of {name or 'the module'} for this CPU: set "
            "support_avx512bf16_for_cpu to False on every Linear4bit before its first forward."
        )
    packed = module.weight.data.reshape(-1).view(torch.uint8)
    scale, code, size = _scales(state), state.code.float(), int(state.blocksize)
    rows, columns = (int(n) for n in state.shape)

    def read(i: Tensor, j: Tensor) -> Tensor:
        where = i * columns + j
        byte = packed[where // 2]
        found = code[torch.where(where % 2 == 0, byte >> 4, byte & 15).long()] * scale[where // size]
        # As the layer has it before it computes: in the dtype that was quantised.
        return found.to(state.dtype).float()

    return Baseline(name, "dequantised", (rows, columns), packed.device, read)


def _scales(state: Any) -> Float[Tensor, "block"]:
    """The largest magnitude of every block; itself in 8 bits where quantised twice."""
    if not state.nested:
        return state.absmax.float()
    inner = state.state2
    block = torch.arange(len(state.absmax), device=state.absmax.device) // inner.blocksize
    return inner.code.float()[state.absmax.long()] * inner.absmax.float()[block] + state.offset


def _eight_bits(module: Any, name: str) -> Baseline:
    """int8 with one scale an output row; after a forward bitsandbytes keeps both in the module's state."""
    weight, state = module.weight, module.state
    codes = weight.data if weight.CB is None else weight.CB
    scale = weight.SCB if weight.SCB is not None else state.SCB
    if scale is None or codes.dtype != torch.int8:
        raise BadInput(
            f"The 8-bit weight of {name or 'the module'} is not quantised yet: move it to its device."
        )
    rows = scale.float() / 127

    def read(i: Tensor, j: Tensor) -> Tensor:
        return codes[i, j].float() * rows[i]

    return Baseline(name, "dequantised", (codes.shape[0], codes.shape[1]), codes.device, read)
