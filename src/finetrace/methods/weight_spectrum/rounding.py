"""What rounding a checkpoint to its precision leaves in the spectrum of a change.

A number is rounded by an error uniform within half a unit in the last place. A matrix of such errors has singular values
up to about sd (sqrt(out) + sqrt(in)); what lies above that is the change itself.
"""

from __future__ import annotations

import math

import torch

from finetrace.weights.delta import Delta, Matrix
from finetrace.weights.dense import Dense

# Above the largest singular value that one rounding is expected to give, by this much: a merge may round the product too.
_SLACK = 4.0
_SAMPLE = 256


def floor(delta: Delta) -> float:
    """Singular values below this may be rounding alone; 0 for what was not rounded, as an adapter's factors."""
    return _SLACK * rounding(delta) if isinstance(delta, Dense) else 0.0


def rounding(delta: Dense) -> float:
    """About the largest singular value of the rounding errors of a checkpoint: sd (sqrt(out) + sqrt(in)).

    A number x is rounded by an error uniform within +- spacing(x) / 2, of sd spacing / sqrt(12).
    """
    rows = delta.after[:_SAMPLE].double()
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        stored_dtype(rows)
    ]
    spacing = torch.exp2(torch.floor(torch.log2(rows.abs().clamp_min(1e-30)))) * torch.finfo(kind).eps
    sd = float((spacing.square().mean() / 12).sqrt()) * abs(delta.factor)
    return sd * (math.sqrt(delta.shape[0]) + math.sqrt(delta.shape[1]))


def stored_dtype(weight: Matrix) -> str:
    """The narrowest type that holds these numbers exactly: a pair computes in another than the checkpoint's."""
    rows = weight[:_SAMPLE]
    for name, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if bool((rows.to(kind).to(rows.dtype) == rows).all()):
            return name
    return "float32"
