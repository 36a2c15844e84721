"""A base that is kept between pairs is, bit for bit, the one that was loaded, and nobody pays for it in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_parity import batch
from tests.tiny import save_full, save_lora
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from finetrace.core.errors import ModelError
from finetrace.models import Pair, open_pair
from finetrace.models.architecture import anatomy
from finetrace.models.keep import keep_bases, make_room

Bases = Callable[[str], Path]


def logits(pair: Pair, side: str) -> Tensor:
    found = pair.trunk(side, *batch(), layers=(0,))
    assert found.final is not None
    return torch.cat([pair.head(side).logits(found.final), found.layers[0]], -1)


def tree(model: nn.Module) -> dict[str, Any]:
    """Everything that makes a model what it is: modules and tensors themselves, their values, hooks and modes."""
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "tensors": {k: (id(v), v.requires_grad) for k, v in model.named_parameters(remove_duplicate=False)},
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "training": [module.training for module in model.modules()],
        "own": sorted(vars(model)),
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    values, others = one.pop("values"), other.pop("values")
    return (
        one == other
        and values.keys() == others.keys()
        and all(map(torch.equal, values.values(), others.values()))
    )


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {}),
    "dora": ("qwen3", {"dora": True}),
    "head": ("llama", {"targets": ["q_proj", "lm_head", "embed_tokens"]}),
    "saved": ("gemma2", {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tokens": ("llama", {"targets": ["v_proj"], "trainable_token_indices": [3, 5]}),
    "gpt2": ("gpt2", {}),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_base_after_a_pair_is_the_base_before(base_of: Bases, tmp_path: Path, kind: str) -> None:
    family, config = ADAPTERS[kind]
    base = base_of(family)
    first = save_lora(tmp_path, base, scale=0.2, **config)
    second = save_lora(
        tmp_path, base, seed=2, name="second", targets=["c_attn" if kind == "gpt2" else "k_proj"]
    )
    fresh = open_pair(base, second)
    wanted = {side: logits(fresh, side) for side in fresh.sides}
    with keep_bases() as keeper:
        alone = open_pair(base, None).load()
        with alone.open("base") as model:
            before = tree(model)
        del model
        alone.release()
        pair = open_pair(base, first)
        assert not torch.equal(logits(pair, "tuned"), logits(pair, "base"))
        pair.release()
        after = open_pair(base, second)
        assert all(torch.equal(logits(after, side), wanted[side]) for side in wanted)
        after.release()
        with alone.open("base") as model:
            assert same(tree(model), before)
        assert (keeper.loaded, keeper.reused) == (1, 3)


def test_a_base_whose_experts_an_adapter_wrote_to_is_loaded_again(base_of: Bases, tmp_path: Path) -> None:
    """PEFT puts such a parameter's own values back after each forward; that they are the same cannot be told cheaply."""
    base = base_of("mixtral")
    tuned = save_lora(
        tmp_path, base, targets=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"], scale=0.2
    )
    fresh = open_pair(base, None)
    wanted = logits(fresh, "base")
    with keep_bases() as keeper:
        pair = open_pair(base, tuned)
        assert not torch.equal(logits(pair, "tuned"), wanted)
        pair.release()
        assert torch.equal(logits(open_pair(base, None), "base"), wanted)
        assert (keeper.loaded, keeper.reused) == (2, 0)


def test_outside_nothing_is_kept(base_of: Bases, tmp_path: Path) -> None:
    pair = open_pair(base_of("llama"), save_lora(tmp_path, base_of("llama")))
    for _ in range(2):
        with pair.open("base") as model:
            gone = weakref.ref(model)
        del model
        pair.release()
        assert gone() is None


def test_many_pairs_take_no_more_than_one(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = [save_lora(tmp_path, base, seed=i, name=f"l{i}", r=1 + i) for i in range(4)]
    full = save_full(tmp_path, base)

    def held() -> int:
        gc.collect()
        return sum(type(one) in (Tensor, nn.Parameter) for one in gc.get_objects())

    first = 0
    with keep_bases() as keeper:
        for source in (tuned[0], *tuned, full, None):
            pair = open_pair(base, source)
            logits(pair, "tuned")
            pair.release()
            if source == tuned[0]:
                first = held()
        assert held() == first
        assert (keeper.loaded, keeper.reused) == (1, 6)


def test_another_base_takes_the_place_of_the_kept_one(base_of: Bases) -> None:
    with keep_bases() as keeper:
        first, second = open_pair(base_of("llama"), None).load(), open_pair(base_of("qwen3"), None)
        with first.open("base") as model:
            kept = weakref.ref(model)
        del model
        first.release()
        assert kept() is not None
        second.load()
        assert kept() is None
        second.release()
        first.load()
        assert keeper.loaded == 3


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}])
def test_a_base_that_is_held_otherwise_is_another(base_of: Bases, options: dict[str, Any]) -> None:
    with keep_bases() as keeper:
        for given in [{}, options]:
            pair = open_pair(base_of("llama"), None, **given).load()
            assert pair.base(batch()[0]).logits.dtype == pair.dtype
            pair.release()
        assert (keeper.loaded, keeper.reused) == (2, 0)


def test_tokenizer_and_template_do_not_make_another_base(base_of: Bases) -> None:
    given: dict[str, Any]
    with keep_bases() as keeper:
        for given in ({}, {"chat_template": "{{ messages }}"}, {"tokenizer": base_of("llama")}):
            open_pair(base_of("llama"), None, **given).load().release()
        assert (keeper.loaded, keeper.reused) == (1, 2)


def test_pairs_in_use_at_once_have_a_base_each(base_of: Bases, tmp_path: Path) -> None:
    base, tuned = base_of("llama"), save_lora(tmp_path, base_of("llama"))
    with keep_bases() as keeper:
        one, two = open_pair(base, tuned).load(), open_pair(base, tuned).load()
        with one.open("tuned") as first, two.open("tuned") as second:
            assert first is not second
        assert keeper.loaded == 2
        one.release()
        assert torch.equal(logits(one, "tuned"), logits(two, "tuned"))


def _write(model: Any) -> None:
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight.add_(1e-7)


def _replace(model: Any) -> None:
    layer = model.get_decoder().layers[0].mlp
    layer.up_proj.weight = nn.Parameter(layer.up_proj.weight * 2)


def _hook(model: Any) -> None:
    model.get_decoder().layers[1].register_forward_hook(lambda module, given, found: None)


@pytest.mark.parametrize("change", [_write, _replace, _hook])
def test_a_base_that_was_changed_is_loaded_again(base_of: Bases, change: Callable[[Any], None]) -> None:
    with keep_bases() as keeper:
        pair = open_pair(base_of("llama"), None)
        clean = logits(pair, "base")
        with pair.open("base") as model:
            change(model)
        del model
        pair.release()
        assert torch.equal(logits(pair, "base"), clean)
        assert (keeper.loaded, keeper.reused) == (2, 0)


def test_a_hook_in_another_hooks_place_is_a_change(base_of: Bases) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base_of("llama"))
    first = model.get_decoder().layers[1].register_forward_hook(lambda module, given, found: None)
    with keep_bases() as keeper:
        keeper.lease("tiny", lambda: anatomy(model))
        lease = keeper.lease("tiny", lambda: anatomy(model))
        assert (keeper.loaded, keeper.reused) == (1, 1)
        first.remove()
        _hook(model)
        del lease
        keeper.lease("tiny", lambda: anatomy(model))
        assert (keeper.loaded, keeper.reused) == (2, 1)


def test_gradients_do_not_stay(base_of: Bases) -> None:
    with keep_bases() as keeper:
        pair = open_pair(base_of("llama"), None)
        with pair.open("base") as model:
            model.requires_grad_(True)
            model(batch()[0]).logits.sum().backward()
        del model
        pair.release()
        with pair.open("base") as model:
            assert all(p.grad is None and not p.requires_grad for p in model.parameters())
        assert keeper.reused == 1


def test_an_adapter_that_does_not_fit_gives_the_base_back(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    wrong = save_lora(tmp_path, base_of("gpt2"), name="wrong")
    right = save_lora(tmp_path, base)
    wanted = logits(open_pair(base, right), "tuned")
    with keep_bases() as keeper:
        with pytest.raises(ModelError):
            open_pair(base, right, nulls={"wrong": wrong}).load()
        assert torch.equal(logits(open_pair(base, right), "tuned"), wanted)
        assert keeper.loaded == 1


def test_a_pair_that_nobody_released_gives_the_base_back(base_of: Bases) -> None:
    with keep_bases() as keeper:
        lost = open_pair(base_of("llama"), None).load()
        lost.self_reference = lost  # type: ignore[attr-defined]
        del lost
        open_pair(base_of("llama"), None).load()
        assert keeper.loaded == 1


def test_room_is_made_and_the_end_frees(base_of: Bases) -> None:
    with keep_bases() as keeper, keep_bases() as inner:
        assert inner is keeper
        pair = open_pair(base_of("llama"), None).load()
        pair.release()
        make_room()
        pair.load()
        assert (keeper.loaded, keeper.reused) == (2, 0)
        with pair.open("base") as model:
            gone = weakref.ref(model)
        del model
    assert gone() is not None
    pair.release()
    assert gone() is None
