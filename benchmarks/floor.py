"""Bare matrix products, measured in the same run: what no arm can be faster than."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.case import Work


@torch.inference_mode()
def products(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> Work:
    """rows x in times in x out for every (rows, in, out), each with a weight of its own, as in a model."""
    torch.manual_seed(0)
    pairs = [(torch.randn(rows, i).to(dtype), torch.randn(o, i).to(dtype)) for rows, i, o in shapes]

    @torch.inference_mode()
    def work() -> None:
        for hidden, weight in pairs:
            F.linear(hidden, weight)

    return work
