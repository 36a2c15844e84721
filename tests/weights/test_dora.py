"""DoRA's rows are turned by its factors and lengthened by its magnitudes: the two are told apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from tests.weights.drawn import factors, generators, whole

from finetrace.weights.delta import LowRank
from finetrace.weights.dora import dora
from finetrace.weights.drift import module_drift

few = settings(max_examples=25, deadline=None)


@few
@given(factors(), generators())
def test_row_cosines_are_unchanged_by_the_magnitude(low: LowRank, generator: torch.Generator) -> None:
    weight = torch.randn(*low.shape, generator=generator, dtype=torch.float64)
    lengths = (weight + whole(low)).norm(dim=1)
    plain = module_drift(low, weight).row_one_minus_cosine
    for magnitude in (
        lengths,
        weight.norm(dim=1),
        lengths * (1 + torch.rand(len(lengths), generator=generator)),
    ):
        delta = dora("m", weight, low, magnitude)
        torch.testing.assert_close(
            module_drift(delta, weight).row_one_minus_cosine, plain, rtol=1e-10, atol=0
        )
        # Not only where it is recognised: from its own sums too.
        torch.testing.assert_close(
            module_drift(delta, weight.clone()).row_one_minus_cosine, plain, rtol=1e-5, atol=1e-12
        )
        torch.testing.assert_close(
            delta.magnitude_drift(), magnitude / weight.norm(dim=1) - 1, rtol=1e-9, atol=1e-10
        )


def test_the_rows_end_with_the_trained_length() -> None:
    torch.manual_seed(0)
    low = LowRank("m", 0.1 * torch.randn(12, 3), torch.randn(3, 9))
    weight, magnitude = torch.randn(12, 9), torch.rand(12) + 1
    after = weight.double() + whole(dora("m", weight, low, magnitude))
    torch.testing.assert_close(after.norm(dim=1), magnitude.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_magnitude_at_its_start_is_no_change(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 20).to(dtype)
    none = LowRank("m", torch.zeros(30, 2), torch.randn(2, 20))
    assert dora("m", weight, none, weight.norm(dim=1)).square() == 0.0
    longer = dora("m", weight, none, 1.1 * weight.float().norm(dim=1))
    assert longer.frobenius() == pytest.approx(0.1 * float(weight.float().norm()), rel=0.02)


def test_a_row_of_zeros_stays() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    none = LowRank("m", torch.zeros(2, 1), torch.ones(1, 2))
    change = whole(dora("m", weight, none, torch.tensor([1.0, 10.0])))
    assert change.tolist() == [[0.0, 0.0], [3.0, 4.0]]
