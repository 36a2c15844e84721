"""The difference form against textbook sums in float64, from tiny changes to enormous ones."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.engine.divergences import compiled_sums, divergences, soft_capped_difference, top


def dense(base: torch.Tensor, difference: torch.Tensor) -> dict[str, torch.Tensor]:
    """KL both ways and JS by their definitions, in float64."""
    b = base.double().log_softmax(-1)
    t = (base.double() + difference.double()).log_softmax(-1)
    m = torch.log((b.exp() + t.exp()) / 2)
    js = 0.5 * (b.exp() * (b - m)).sum(-1) + 0.5 * (t.exp() * (t - m)).sum(-1)
    return {"kl": (t.exp() * (t - b)).sum(-1), "reverse_kl": (b.exp() * (b - t)).sum(-1), "js": js}


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 1.0, 10.0, 80.0, 500.0])
def test_matches_float64(size: float):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 501, generator=generator) * 3
    difference = torch.randn(64, 501, generator=generator) * size
    found, wanted = divergences(base.log_softmax(-1), difference), dense(base, difference)
    for name in ("kl", "reverse_kl", "js"):
        torch.testing.assert_close(getattr(found, name).double(), wanted[name], rtol=5e-6, atol=1e-13)
        assert (getattr(found, name) >= 0).all()


def test_small_changes_keep_their_accuracy_and_are_never_negative():
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(256, 4000, generator=generator) * 2.7
    difference = (
        torch.randn(256, 4000, generator=generator) * 1e-5
    )  # KL about 5e-11: subtracted logits would give noise
    found, wanted = divergences(base.log_softmax(-1), difference), dense(base, difference)
    assert ((found.kl.double() / wanted["kl"] - 1).abs() < 2e-4).all()
    assert (found.kl > 0).all()


@pytest.mark.parametrize(("size", "true_kl"), [(1e-2, 5e-5), (5e-3, 1e-5), (0.3, 5e-2)])
def test_bf16_products_keep_two_thousandths(size: float, true_kl: float):
    """The difference of hidden states is rounded once, relative to itself: 2e-3 relative down to KL 1e-5."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(128, 64, generator=generator).bfloat16()
    moved = (hidden.float() + size * torch.randn(128, 64, generator=generator)).bfloat16()
    weight = (torch.randn(2000, 64, generator=generator) / 8).bfloat16()
    raw = (hidden @ weight.T).float()
    found = divergences(raw.log_softmax(-1), ((moved.float() - hidden.float()).bfloat16() @ weight.T).float())
    exact = dense(hidden.double() @ weight.double().T, (moved.double() - hidden.double()) @ weight.double().T)
    assert float(exact["kl"].mean()) == pytest.approx(true_kl, rel=9)  # the regime meant
    assert abs(float(found.kl.double().mean() / exact["kl"].mean()) - 1) <= 2e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 200.0), st.floats(0.1, 30.0))
def test_nonnegative_and_bounded(seed: int, size: float, spread: float):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(8, 33, generator=generator) * spread
    found = divergences(base.log_softmax(-1), torch.randn(8, 33, generator=generator) * size)
    assert (found.kl >= 0).all()
    assert (found.reverse_kl >= 0).all()
    assert (found.js >= 0).all()
    assert (found.js <= 0.6931472 + 1e-5).all()
    assert found.kl.isfinite().all()


def test_a_shift_of_all_logits_is_no_change():
    base = torch.randn(4, 50, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    assert float(divergences(base, torch.full((4, 50), 7.0)).kl.max()) < 1e-11
    assert float(divergences(base, torch.zeros(4, 50)).kl.max()) == 0


def test_soft_cap_difference():
    generator = torch.Generator().manual_seed(4)
    base, difference = (
        torch.randn(16, 40, generator=generator) * 20,
        torch.randn(16, 40, generator=generator) * 1e-3,
    )
    exact = 30 * (torch.tanh((base.double() + difference.double()) / 30) - torch.tanh(base.double() / 30))
    torch.testing.assert_close(
        soft_capped_difference(base, difference, 30.0).double(), exact, rtol=1e-4, atol=1e-9
    )


def test_top_breaks_ties_by_lowest_id():
    values, ids = top(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 3)
    assert ids.tolist() == [[1, 2, 4]]
    assert values.tolist() == [[3.0, 3.0, 3.0]]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_sums_agree():
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(40, 300, generator=generator).log_softmax(-1)
    for size in (1e-4, 0.1, 90.0):
        difference = torch.randn(40, 300, generator=generator) * size
        eager, compiled = divergences(base, difference), divergences(base, difference, compiled_sums())
        for name in ("kl", "reverse_kl", "js"):
            torch.testing.assert_close(getattr(compiled, name), getattr(eager, name), rtol=1e-4, atol=1e-11)
