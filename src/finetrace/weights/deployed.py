"""What is left of a change once it is merged in the dtype that is deployed.

bfloat16 keeps 8 bits: an update below 1/256 of its weight's size, as most of a fine-tune's are, can round away whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from finetrace.core.errors import BadInput
from finetrace.weights.delta import Delta, Matrix, merge, tiles

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Deployed:
    """One module merged in `dtype`, against the same module with its adapter apart (the base in `dtype`, the change exact).

    entries: those that change at all. vanished: of these, how many are the base's own again after merging, rounded
    once. exact: norm of the change; rounded: norm of merged - base; error: norm of what merging lost or added,
    merged - (base + change). All in float64.
    """

    module: str
    dtype: str
    entries: int
    vanished: int
    exact: float
    rounded: float
    error: float

    @property
    def vanished_fraction(self) -> float | None:
        """Share of the changed entries that merging undoes; None where none changes."""
        return self.vanished / self.entries if self.entries else None

    @property
    def relative_error(self) -> float | None:
        """Norm of the rounding error over that of the change; None where nothing changes."""
        return self.error / self.exact if self.exact > 0 else None


@torch.no_grad()
def deployed(delta: Delta, weight: Matrix, dtype: torch.dtype = torch.bfloat16) -> Deployed:
    """Merges a few rows at a time in `dtype` and compares; nothing is kept."""
    if dtype not in _DTYPES:
        raise BadInput(f"Weights are merged in bfloat16, float16 or float32, not {dtype}.")
    entries = vanished = 0
    exact = rounded = error = 0.0
    for start, stop, tile in tiles(delta):
        base = weight[start:stop].to(dtype)
        merged = merge(base, tile)
        if not bool(merged.isfinite().all()):
            raise BadInput(f"The merged weight of {delta.module} is beyond {_name(dtype)}: use bfloat16.")
        changed, kept = tile != 0, merged.double() - base.double()
        entries += int(changed.sum())
        vanished += int((changed & (kept == 0)).sum())
        exact += float(tile.square().sum())
        rounded += float(kept.square().sum())
        error += float((kept - tile).square().sum())
    norms = (math.sqrt(total) for total in (exact, rounded, error))
    return Deployed(delta.module, _name(dtype), entries, vanished, *norms)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
