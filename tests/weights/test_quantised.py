"""Quantised weights: the numbers that the layer computes with, and two baselines that are never mixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.weights.drawn import whole
from torch import Tensor, nn

from finetrace.core.errors import BadInput
from finetrace.weights import delta as delta_module
from finetrace.weights.delta import LowRank
from finetrace.weights.drift import group_drift, module_drift, total
from finetrace.weights.quantised import against, baseline, is_quantised, quantisation_error
from finetrace.weights.read import adapter_deltas

bnb = pytest.importorskip("bitsandbytes", reason="the extra [train] is not installed")


def four_bits(weight: Tensor, *, nested: bool = True, kind: str = "nf4") -> Any:
    settings = {"quant_type": kind, "compress_statistics": nested}
    module = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, **settings)
    module.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, **settings)
    module = module.to("cpu")
    # On some CPUs the first forward would repack the weight in place.
    module.support_avx512bf16_for_cpu = False
    return module


def eight_bits(weight: Tensor) -> Any:
    module = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    module.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return module.to("cpu")


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(30, 50)


@pytest.fixture
def low() -> LowRank:
    torch.manual_seed(1)
    return LowRank("m", 1e-2 * torch.randn(30, 3), torch.randn(3, 50))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_four_bits_are_what_the_library_makes_of_them(
    kind: str, nested: bool, dtype: torch.dtype, weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_module, "_TILE", 130)
    module = four_bits(weight.to(dtype), nested=nested, kind=kind)
    theirs = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    found = baseline(module, name="m")
    assert torch.equal(found.tensor(), theirs)
    assert torch.equal(found[3:7], theirs[3:7])
    assert torch.equal(found[torch.tensor([5, 2])], theirs[[5, 2]])
    assert torch.equal(found[torch.tensor([5, 2]), torch.tensor([0, 49])], theirs[[5, 2], [0, 49]])


def test_eight_bits_before_and_after_a_forward(weight: Tensor) -> None:
    module = eight_bits(weight)
    before = baseline(module).tensor()
    assert float((before - weight).abs().max()) <= float(weight.abs().max()) / 127
    said = module(torch.eye(50))
    torch.testing.assert_close(baseline(module).tensor(), before, rtol=0, atol=0)
    torch.testing.assert_close(said.float().T, before, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("make", [four_bits, eight_bits])
def test_a_change_from_either_baseline(make: Any, weight: Tensor, low: LowRank) -> None:
    module = make(weight)
    deployed = baseline(module).tensor().double()
    own, full = against(low, module, "dequantised"), against(low, module, "original", weight)
    torch.testing.assert_close(whole(own), whole(low), rtol=0, atol=0)
    wanted = deployed + whole(low) - weight.double()
    torch.testing.assert_close(whole(full), wanted, rtol=1e-10, atol=1e-12)
    assert (own.baseline, full.baseline) == ("dequantised", "original")
    error = quantisation_error(module, weight, "m")
    assert error.frobenius() == pytest.approx(float((deployed - weight.double()).norm()), rel=1e-10)
    for delta, kind, given in ((own, "dequantised", deployed), (full, "original", weight.double())):
        found = module_drift(delta, baseline(module, kind, name="m", original=weight))
        assert found.baseline == kind
        assert found.relative == pytest.approx(float(whole(delta).norm() / given.norm()), rel=1e-6)
        direct = module_drift(delta, given)
        torch.testing.assert_close(found.row_one_minus_cosine, direct.row_one_minus_cosine, rtol=1e-4, atol=0)


def test_baselines_are_never_mixed(weight: Tensor, low: LowRank) -> None:
    module = four_bits(weight)
    own, full = against(low, module, "dequantised"), against(low, module, "original", weight)
    original = baseline(module, "original", name="m", original=weight)
    rows = torch.tensor([1, 2])
    for call in (
        lambda: module_drift(own, original),
        lambda: group_drift(own, original, rows, rows, "g"),
        lambda: group_drift(full, baseline(module, name="m"), rows, None, "g"),
        lambda: group_drift(low, original, None, None, "all"),
    ):
        with pytest.raises(BadInput, match="take the same baseline for both"):
            call()
    one = group_drift(own, baseline(module, name="m"), rows, rows, "g")
    two = group_drift(full, original, rows, rows, "g")
    assert (one.baseline, two.baseline) == ("dequantised", "original")
    with pytest.raises(BadInput, match="counted from dequantised and from original weights"):
        total([one, two])


def test_what_is_asked_wrongly(weight: Tensor, low: LowRank) -> None:
    module = four_bits(weight)
    assert is_quantised(module)
    assert not is_quantised(nn.Linear(2, 2))
    with pytest.raises(BadInput, match="not quantised by bitsandbytes"):
        baseline(nn.Linear(2, 2))
    with pytest.raises(BadInput, match="give the checkpoint that it was quantised from"):
        baseline(module, "original", name="m")
    with pytest.raises(BadInput, match="not 'both'"):
        baseline(module, "both")
    with pytest.raises(BadInput, match="not 'base'"):
        against(low, module, "base")
    with pytest.raises(BadInput, match="not of one checkpoint"):
        quantisation_error(module, weight[:20], "m")
    module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BadInput, match="has repacked the 4-bit weight"):
        baseline(module)


@pytest.mark.parametrize("dora", [False, True])
def test_a_qlora_adapter_is_counted_from_what_it_adds_to(dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    inner = four_bits(torch.randn(64, 64))
    model: Any = get_peft_model(
        nn.Sequential(inner), LoraConfig(r=2, target_modules=["0"], use_dora=dora, init_lora_weights=False)
    )
    inputs = torch.eye(64)
    with torch.no_grad():
        model.base_model.model[0].lora_B["default"].weight.mul_(0.1)
        after = model(inputs).T
        with model.disable_adapter():
            before = model(inputs).T
    (delta,) = adapter_deltas(model).values()
    assert delta.baseline == "dequantised"
    torch.testing.assert_close(whole(delta), (after - before).double(), rtol=1e-3, atol=1e-4)
