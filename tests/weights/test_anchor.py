"""A group's drift scaled in memory: as the dense weights would have it, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny import save_full, save_lora

from finetrace.core.errors import BadInput
from finetrace.models import Pair, open_pair
from finetrace.weights.anchor import group_scaled
from finetrace.weights.controls import random_like
from finetrace.weights.groups import Group, Unit, top
from finetrace.weights.read import deltas, model_weight, weight

IDS = torch.tensor([[1, 5, 9, 12, 7]])


def opened(kind: str, family: str, tmp: Path, base_of: Callable[[str], Path]) -> Pair:
    base = base_of(family)
    made = save_full(tmp, base) if kind == "full" else save_lora(tmp, base, dora=kind == "dora")
    return open_pair(base, made, dtype="float32", device="cpu")


def some(pair: Pair, unit: Unit) -> Group:
    changes = {module: delta.tile(0, delta.shape[0]).abs() for module, delta in deltas(pair).items()}
    return top(changes, 0.2, name="safety_top", unit=unit)


def dense(pair: Pair, group: Group, factor: float) -> torch.Tensor:
    """Logits of the base with W + D + (factor - 1) D on the group's entries written into its weights."""
    with pair.open("base") as model:
        before = {module: weight(pair, module).clone() for module in deltas(pair)}
        try:
            for module, delta in deltas(pair).items():
                change = delta.tile(0, delta.shape[0]).float()
                change[group.mask(module, delta.shape)] *= factor
                held = model_weight(model, module)
                assert held is not None
                held.copy_(before[module] + change)
            with torch.no_grad():
                return model(input_ids=IDS).logits
        finally:
            for module, old in before.items():
                weight(pair, module).copy_(old)


@pytest.mark.parametrize(
    ("kind", "family", "unit"),
    [("lora", "llama", "entries"), ("lora", "llama", "rows"), ("dora", "llama", "entries"), ("lora", "gpt2", "entries"), ("full", "llama", "entries"), ("full", "gpt2", "rows")],
)  # fmt: skip
def test_the_model_computes_as_if_the_drift_were_larger(kind, family, unit, tmp_path, base_of):
    pair = opened(kind, family, tmp_path, base_of)
    group, plain = some(pair, unit), pair.tuned(input_ids=IDS).logits
    for factor in (3.0, 0.0):
        wanted = (full if kind == "full" else dense)(pair, group, factor)
        with group_scaled(pair, deltas(pair), group, factor) as model, torch.no_grad():
            found = model(input_ids=IDS).logits
            assert torch.equal(pair.tuned(input_ids=IDS).logits, found)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert float((found - plain).abs().max()) > 1e-2
    assert torch.equal(pair.tuned(input_ids=IDS).logits, plain)


def full(pair: Pair, group: Group, factor: float) -> torch.Tensor:
    with pair.open("tuned") as model:
        before = {}
        try:
            for module, delta in deltas(pair).items():
                held = model_weight(model, module)
                assert held is not None
                before[module] = held.clone()
                change = delta.tile(0, delta.shape[0]).float() * group.mask(module, delta.shape)
                held.add_((factor - 1) * change)
            with torch.no_grad():
                return model(input_ids=IDS).logits
        finally:
            for module, old in before.items():
                held = model_weight(model, module)
                assert held is not None
                held.copy_(old)


def test_by_one_nothing_is_changed(tmp_path, base_of):
    pair = opened("lora", "llama", tmp_path, base_of)
    with group_scaled(pair, deltas(pair), some(pair, "entries"), 1.0) as model, torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, pair.tuned(input_ids=IDS).logits)


def test_what_is_raised_inside_leaves_the_model_as_it_was(tmp_path, base_of):
    pair = opened("lora", "llama", tmp_path, base_of)
    group, changes = some(pair, "entries"), deltas(pair)
    plain, base = pair.tuned(input_ids=IDS).logits, pair.base(input_ids=IDS).logits
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), group_scaled(pair, changes, group, 4.0):
            raise error
        assert torch.equal(pair.tuned(input_ids=IDS).logits, plain)
        assert torch.equal(pair.base(input_ids=IDS).logits, base)
    with pair.open("tuned") as model:
        assert not any(module._forward_hooks for module in model.modules())


def test_the_base_is_the_base_inside(tmp_path, base_of):
    pair = opened("lora", "llama", tmp_path, base_of)
    base = pair.base(input_ids=IDS).logits
    with group_scaled(pair, deltas(pair), some(pair, "entries"), 4.0):
        assert torch.equal(pair.base(input_ids=IDS).logits, base)


def test_a_module_that_the_model_lacks_is_told(tmp_path, base_of):
    pair = opened("lora", "llama", tmp_path, base_of)
    changes = deltas(pair)
    name, delta = next(iter(changes.items()))
    group = random_like(Group("g", "entries", {name: torch.tensor([3])}), {name: delta.shape}, 0)
    moved = Group("g", "entries", {f"{name}[0]": group.of(name)})
    with (
        pytest.raises(BadInput, match="no module of that name"),
        group_scaled(pair, {f"{name}[0]": delta}, moved, 2.0),
    ):
        pass
