"""Random factors and changes of all kinds, drawn by hypothesis; the dense float64 forms that they are held against."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from finetrace.weights.delta import Delta, LowRank
from finetrace.weights.dense import Dense
from finetrace.weights.dora import dora
from finetrace.weights.stacked import Combined

KINDS = ("low", "dora", "dense", "combined")


@st.composite
def generators(draw: st.DrawFn) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


@st.composite
def factors(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> LowRank:
    """Shapes of 1 to 24, rank 1 to 6, sizes over eight orders of magnitude."""
    out, into, r = (draw(st.integers(1, most)) for most in (24, 24, 6))
    size, generator = 10.0 ** draw(st.integers(-6, 2)), draw(generators())
    up = torch.randn(out, r, generator=generator, dtype=torch.float64) * size
    down = torch.randn(r, into, generator=generator, dtype=torch.float64)
    return LowRank("m", up.to(dtype), down.to(dtype))


@st.composite
def changes(draw: st.DrawFn, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Delta, Tensor]:
    """(a change of the kind, the weight that it is a change of)."""
    low, generator = draw(factors(dtype)), draw(generators())
    weight = torch.randn(*low.shape, generator=generator, dtype=torch.float64).to(dtype)
    if kind == "low":
        return low, weight
    magnitude = weight.double().norm(dim=1) * (1 + 0.1 * torch.randn(low.shape[0], generator=generator))
    turned = dora("m", weight, low, magnitude)
    if kind == "dora":
        return replace(turned, factor=draw(st.sampled_from([1.0, -2.0]))), weight
    dense = Dense(
        "m", weight, (weight.double() + whole(low)).to(dtype), factor=draw(st.sampled_from([1.0, 0.5]))
    )
    return (dense, weight) if kind == "dense" else (Combined((turned, low, dense)), weight)


def whole(delta: Delta) -> Tensor:
    """Every entry, float64."""
    return delta.tile(0, delta.shape[0])


def close(found: Tensor, wanted: Tensor, bound: float, scale: Tensor | float) -> None:
    """|found - wanted| <= bound * scale, wherever `scale` is what the figure could be at most."""
    error = (found - wanted).abs()
    limit = bound * torch.as_tensor(scale) + 1e-300
    assert bool((error <= limit).all()), float((error / limit).max())
