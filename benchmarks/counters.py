"""Counts instead of times: the same on every machine, so that a test may hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counts:
    """flop: of matrix products. largest: bytes of the largest tensor that any operation made (views aside)."""

    flop: int
    largest: int


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def counted(work: Callable[[], object]) -> Counts:
    """Runs the work, eagerly: fused loops of compiled code are not seen."""
    with FlopCounterMode(display=False) as flops, _Largest() as largest:
        work()
    return Counts(flops.get_total_flops(), largest.bytes)
