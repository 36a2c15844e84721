"""Drift of rows, columns and groups: against long floats, at changes where a plain cosine is rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.weights.delta import LowRank
from finetrace.weights.dense import Dense
from finetrace.weights.drift import (
    GroupDrift,
    entry_drift,
    group_drift,
    module_drift,
    row_drift,
    total,
    weight_norms,
)


def made(
    size: float, *, out: int = 20, into: int = 30, dtype: torch.dtype = torch.float64
) -> tuple[LowRank, Tensor]:
    generator = torch.Generator().manual_seed(0)
    up, down, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((out, 3), (3, into), (out, into))
    )
    return LowRank("m", (size * up).to(dtype), down.to(dtype)), weight.to(dtype)


def exact(change: Tensor, weight: Tensor) -> np.ndarray:
    """1 - cos of the rows, in long floats, by |sin|^2 / (1 + cos) from the part of the change across the weight."""
    d, w = (x.double().numpy().astype(np.longdouble) for x in (change, weight))
    moved = w + d
    across = d - (d * w).sum(1, keepdims=True) / (w * w).sum(1, keepdims=True) * w
    cosine = (w * moved).sum(1) / np.sqrt((w * w).sum(1) * (moved * moved).sum(1))
    return (across * across).sum(1) / (moved * moved).sum(1) / (1 + cosine)


@pytest.mark.parametrize("size", [1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_angles_keep_their_precision(size: float, dtype: torch.dtype, bound: float) -> None:
    low, weight = made(size, dtype=dtype)
    full = low.tile(0, 20)
    found = module_drift(low, weight)
    np.testing.assert_allclose(found.row_one_minus_cosine, exact(full, weight).astype(float), rtol=bound)
    np.testing.assert_allclose(
        found.column_one_minus_cosine, exact(full.T, weight.T).astype(float), rtol=bound
    )
    np.testing.assert_allclose(found.row_l2, full.norm(dim=1), rtol=bound)
    np.testing.assert_allclose(
        found.column_relative, full.norm(dim=0) / weight.double().norm(dim=0), rtol=bound
    )
    assert found.frobenius == pytest.approx(float(full.norm()), rel=bound)
    assert found.relative == pytest.approx(float(full.norm() / weight.double().norm()), rel=bound)
    again = module_drift(low, weight, weight_norms(weight))
    torch.testing.assert_close(again.row_one_minus_cosine, found.row_one_minus_cosine, rtol=0, atol=0)


def test_what_a_plain_cosine_would_have_said() -> None:
    low, weight = made(1e-5, dtype=torch.float32)
    moved = weight + low.tile(0, 20).float()
    plain = 1 - torch.nn.functional.cosine_similarity(weight, moved, dim=1)
    wanted = torch.from_numpy(exact(low.tile(0, 20), weight).astype(float))
    assert float(((plain - wanted).abs() / wanted).median()) >= 0.99
    found = module_drift(low, weight).row_one_minus_cosine
    assert float(((found - wanted).abs() / wanted).max()) < 1e-5


def test_groups_of_entries_rows_and_everything() -> None:
    low, weight = made(1e-3)
    full = low.tile(0, 20)
    rows, columns = torch.tensor([0, 0, 7, 19]), torch.tensor([1, 29, 3, 0])
    entries = group_drift(low, weight, rows, columns, "g")
    d, w = full[rows, columns], weight[rows, columns]
    check(entries, d, w, "g")
    some = torch.tensor([3, 4, 9])
    check(group_drift(low, weight, some, None, "rows"), full[some], weight[some], "rows")
    check(group_drift(low, weight, None, None, "all"), full, weight, "all")
    kept = entry_drift(low, w, rows, columns, "g", entries.weight_square)
    assert kept == entries
    bare = group_drift(low, weight, rows, columns, "g", dots=False, weight_square=2.0)
    assert (bare.square, bare.weight_square, bare.dot, bare.one_minus_cosine) == (
        entries.square,
        2.0,
        None,
        None,
    )


def check(found: GroupDrift, d: Tensor, w: Tensor, group: str) -> None:
    assert (found.module, found.group, found.n) == ("m", group, d.numel())
    assert found.l2 == pytest.approx(float(d.norm()), rel=1e-10)
    assert found.relative == pytest.approx(float(d.norm() / w.norm()), rel=1e-10)
    assert found.dot == pytest.approx(float((d * w).sum()), rel=1e-10)
    wanted = float(exact(d.reshape(1, -1), w.reshape(1, -1))[0])
    assert found.one_minus_cosine == pytest.approx(wanted, rel=1e-8)


def test_no_weight_has_no_relative_drift() -> None:
    low, weight = made(1.0)
    weight[2] = 0
    found = module_drift(low, weight)
    assert math.isnan(float(found.row_one_minus_cosine[2]))
    assert group_drift(low, weight, torch.tensor([2]), None, "g").relative is None
    assert module_drift(low, torch.zeros_like(weight)).relative is None
    empty = group_drift(
        low, weight, torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long), "g"
    )
    assert (empty.n, empty.square, empty.relative, empty.one_minus_cosine) == (0, 0.0, None, None)


def test_a_turn_beyond_a_right_angle() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    change = Dense("m", weight, torch.tensor([[-2.0, 0.0], [0.0, 3.0]], dtype=torch.float64))
    assert module_drift(change, weight).row_one_minus_cosine.tolist() == [2.0, 1.0]


def test_sums_over_modules() -> None:
    one, two = (GroupDrift(name, "g", 2, 1.0, 4.0, 0.5) for name in ("a", "b"))
    found = total([one, two])
    assert (found.n, found.square, found.weight_square, found.dot) == (4, 2.0, 8.0, 1.0)
    assert found.relative == 0.5
    assert total([one, GroupDrift("b", "g", 2, 1.0, 4.0, None)]).dot is None
    with pytest.raises(BadInput, match="no drift"):
        total([])


def test_another_shape_is_told() -> None:
    low, weight = made(1.0)
    with pytest.raises(BadInput, match=r"The weight of m is \(30, 20\) and its change \(20, 30\)"):
        module_drift(low, weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quick_angles_are_near_in_a_short_dtype(dtype: torch.dtype) -> None:
    low, weight = made(1e-4, out=60, into=80, dtype=torch.float32)
    weight = weight.to(dtype)
    exactly, quickly = row_drift(low, weight), row_drift(low, weight, weight_norms(weight)[0], quick=True)
    torch.testing.assert_close(quickly.l2, exactly.l2, rtol=0, atol=0)
    torch.testing.assert_close(quickly.one_minus_cosine, exactly.one_minus_cosine, rtol=3e-3, atol=0)
    dots = low.quick_row_dots(weight), low.row_dots(weight)
    assert float((dots[0] - dots[1]).norm() / dots[1].norm()) < (1e-6 if dtype == torch.float32 else 1e-2)
