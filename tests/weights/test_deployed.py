"""What merging in a short dtype leaves of a change, against every entry counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.weights.drawn import whole

from finetrace.core.errors import BadInput
from finetrace.weights import delta as delta_module
from finetrace.weights.delta import LowRank
from finetrace.weights.dense import Dense
from finetrace.weights.deployed import deployed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e-4, 3e-3, 1.0])
def test_counted_one_by_one(dtype: torch.dtype, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_module, "_TILE", 50)
    torch.manual_seed(0)
    low = LowRank("m", size * torch.randn(13, 2), torch.randn(2, 17))
    low.up[3] = 0
    weight = torch.randn(13, 17)
    changed = vanished = 0
    exact = rounded = error = 0.0
    full = whole(low)
    for row, old in zip(full.tolist(), weight.to(dtype), strict=True):
        for step, one in zip(row, old, strict=True):
            new = (one.double() + step).to(dtype)
            changed += step != 0
            vanished += step != 0 and bool(new == one)
            exact += step**2
            rounded += float(new.double() - one.double()) ** 2
            error += (float(new.double() - one.double()) - step) ** 2
    found = deployed(low, weight, dtype)
    assert (found.entries, found.vanished) == (changed, vanished)
    assert changed == 12 * 17
    assert found.vanished_fraction == vanished / changed
    for ours, theirs in ((found.exact, exact), (found.rounded, rounded), (found.error, error)):
        assert ours == pytest.approx(math.sqrt(theirs), rel=1e-10)


def test_small_updates_vanish_in_bfloat16_and_not_in_float32() -> None:
    torch.manual_seed(0)
    low = LowRank("m", 3e-4 * torch.randn(64, 4), torch.randn(4, 64))
    weight = torch.randn(64, 64)
    short, long = (deployed(low, weight, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert short.vanished_fraction is not None
    assert short.vanished_fraction > 0.5
    assert long.vanished <= 4
    assert short.relative_error is not None
    assert short.relative_error > 0.5
    assert long.relative_error is not None
    assert long.relative_error < 1e-3
    assert short.dtype == "bfloat16"


def test_no_change_has_no_fraction() -> None:
    weight = torch.randn(3, 4)
    found = deployed(Dense("m", weight, weight), weight)
    assert (found.entries, found.vanished_fraction, found.relative_error) == (0, None, None)


def test_beyond_the_dtype() -> None:
    weight = torch.ones(2, 2)
    with pytest.raises(BadInput, match="beyond float16"):
        deployed(Dense("m", weight, 1e6 * weight), weight, torch.float16)
    with pytest.raises(BadInput, match="merged in bfloat16"):
        deployed(Dense("m", weight, weight), weight, torch.int8)
