"""What a pair's sides change, read from memory, is what merging them would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from tests.weights.drawn import whole
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.models import open_pair
from finetrace.weights import Dense, Dora, LowRank, read
from finetrace.weights.drift import module_drift

Bases = Callable[[str], Path]
Changed = dict[str, tuple[Tensor, Tensor]]


def merged(base: Path, tuned: Path) -> tuple[Changed, Changed]:
    """(matrices, everything else) that PEFT's own merging in float64 changes: name -> (before, after)."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)

    before, after = load(), PeftModel.from_pretrained(load(), tuned).merge_and_unload()
    pairs = zip(read.matrices(before), read.matrices(after), strict=True)
    matrices = {name: (old, new) for (name, old), (_, new) in pairs if not torch.equal(old, new)}
    own = {f"{name}.weight" for name, _ in read.matrices(before)} | {
        n.partition("[")[0] for n, _ in read.matrices(before)
    }
    new = dict(after.named_parameters())
    rest = {
        k: (v, new[k]) for k, v in before.named_parameters() if k not in own and not torch.equal(v, new[k])
    }
    return matrices, rest


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rslora": True, "alpha_pattern": {"layers.0.*": 2.0}, "rank_pattern": {"q_proj": 2}}),
    ("llama", {"dora": True, "targets": ["q_proj", "down_proj"]}),
    ("llama", {"targets": ["q_proj"], "layers_to_transform": [1]}),
    ("llama", {"targets": ["q_proj", "embed_tokens"]}),
    ("gpt2", {"targets": ["c_attn", "c_fc", "c_proj"]}),
    ("gpt2", {"targets": ["c_attn"], "dora": True}),
    ("gpt2", {"targets": ["c_attn"], "lora_bias": True}),
    ("gemma3", {"targets": ["q_proj", "o_proj"]}),
    ("mixtral", {"targets": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
    (
        "mixtral",
        {"targets": ["q_proj"], "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]},
    ),
]


@pytest.mark.parametrize(
    ("family", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x) or "plain"
)
def test_an_adapter_changes_what_merging_it_would(
    family: str, config: dict[str, Any], base_of: Bases, tmp_path: Path
) -> None:
    base = base_of(family)
    tuned = save_lora(tmp_path, base, **config)
    pair = open_pair(base, tuned)
    matrices, rest = merged(base, tuned)
    if "embed_tokens" in config.get("targets", ()):
        # Merging into a tied embedding changes the head too; the adapter itself does not.
        del matrices["lm_head"]
    found, others = read.deltas(pair), read.others(pair)
    assert found.keys() == matrices.keys()
    for name, (before, after) in matrices.items():
        torch.testing.assert_close(whole(found[name]), after - before, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(read.weight(pair, name).double(), before)
        assert found[name].module == name
        assert isinstance(found[name], Dora if config.get("dora") else LowRank)
    assert others.keys() == rest.keys()
    for name, (before, after) in rest.items():
        torch.testing.assert_close(others[name][0].double(), before)
        torch.testing.assert_close(others[name][1].double(), after, rtol=1e-5, atol=1e-7)


def test_modules_that_an_adapter_holds_whole(base_of: Bases, tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", tied=False)
    tuned = save_lora(tmp_path, base, targets=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"])
    pair = open_pair(base, tuned)
    matrices, rest = merged(base, tuned)
    found, others = read.deltas(pair), read.others(pair)
    assert isinstance(found["lm_head"], Dense)
    assert found.keys() == matrices.keys()
    torch.testing.assert_close(whole(found["lm_head"]), matrices["lm_head"][1] - matrices["lm_head"][0])
    assert others.keys() == rest.keys() >= {"model.embed_tokens.weight", "model.norm.weight"}
    for name, (_, after) in rest.items():
        torch.testing.assert_close(others[name][1].double(), after)


def test_single_rows_of_an_embedding(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj"], trainable_token_indices={"embed_tokens": [9, 10]})
    before, after = read.others(open_pair(base, tuned))["model.embed_tokens.weight"]
    assert (before != after).any(1).nonzero()[:, 0].tolist() == [9, 10]


def test_a_dora_embedding(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["embed_tokens"], dora=True)
    pair = open_pair(base, tuned)
    before, after = read.others(pair)["model.embed_tokens.weight"]
    with pair.open("tuned") as model:
        ids = torch.arange(64)[None]
        said = model.get_input_embeddings()(ids)[0]
    torch.testing.assert_close(after, said, rtol=1e-5, atol=1e-6)
    assert not torch.equal(before, after)


def test_full_checkpoints(base_of: Bases, tmp_path: Path) -> None:
    for family, touch in (("llama", "q_proj"), ("gpt2", "c_attn.weight"), ("mixtral", "experts")):
        base = base_of(family)
        tuned = save_full(
            tmp_path, base, name=family, touch=[touch, "norm", "ln_1.bias", "embed_tokens", "wte"]
        )
        pair = open_pair(base, tuned)
        found, others = read.deltas(pair), read.others(pair)
        assert found
        assert all(touch.removesuffix(".weight") in name for name in found)
        with pair.open("base") as one, pair.open("tuned") as two:
            old, new = dict(read.matrices(one)), dict(read.matrices(two))
            left = {k: v for k, v in two.named_parameters() if k in others}
        for name, delta in found.items():
            torch.testing.assert_close(whole(delta), new[name].double() - old[name].double(), rtol=0, atol=0)
            assert module_drift(delta, read.weight(pair, name)).frobenius > 0
        assert left.keys() == others.keys()
        assert all(torch.equal(others[name][1], left[name]) for name in left)
        assert any("norm" in name or "ln_1" in name for name in others)
        with pair.open("base") as one, pair.open("tuned") as two:
            changed = {
                k
                for (k, a), (_, b) in zip(*(m.named_parameters() for m in (one, two)), strict=True)
                if not torch.equal(a, b)
            }
        assert changed == others.keys() | {
            name.partition("[")[0] + ".weight" * ("[" not in name) for name in found
        }


def test_one_side_against_another(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    one = save_lora(tmp_path, base, seed=1, r=2, targets=["q_proj", "v_proj"], name="one")
    two = save_lora(tmp_path, base, seed=2, r=3, targets=["q_proj", "up_proj"], name="two")
    full = save_full(tmp_path, base, name="full")
    other = save_full(tmp_path, base, name="other", seed=2)
    pair = open_pair(base, one, nulls={"two": two, "full": full, "other": other})
    sides = {side: read.deltas(pair, side) for side in ("tuned", "two", "full", "other")}
    assert read.deltas(pair, "tuned", of="base").keys() == sides["tuned"].keys()
    for after, before in (("tuned", "two"), ("full", "tuned"), ("full", "other")):
        found = read.deltas(pair, after, of=before)
        assert found.keys() == sides[after].keys() | sides[before].keys()
        for name, delta in found.items():
            wanted = sum(
                (
                    sign * whole(sides[side][name])
                    for side, sign in ((after, 1), (before, -1))
                    if name in sides[side]
                ),
                torch.zeros(delta.shape, dtype=torch.float64),
            )
            torch.testing.assert_close(whole(delta), wanted, rtol=1e-6, atol=1e-9)
    ranks = {name: delta.rank_bound for name, delta in read.deltas(pair, "tuned", of="two").items()}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {5}
    assert read.deltas(pair, "tuned", of="tuned") == {}


def test_the_base_and_untrained_adapters_change_nothing(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    pair = open_pair(base, None, nulls={"zero": save_lora(tmp_path, base, scale=0.0, dora=True)})
    for side in ("tuned", "zero"):
        assert (read.deltas(pair, side), read.others(pair, side)) == ({}, {})
    assert read.others(pair, "base") == {}


def test_a_resized_vocabulary_is_compared_by_token(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", tied=False)
    larger = save_base(tmp_path, "llama", tied=False, vocab=70, name="larger", tokenizer=tiny_tokenizer(70))
    pair = open_pair(base, larger)
    found, others = read.deltas(pair), read.others(pair)
    assert "lm_head" not in found
    assert {tuple(tensor.shape) for tensor in others["lm_head.weight"]} == {(64, 32)}
    with pair.open("tuned") as model:
        assert torch.equal(others["model.embed_tokens.weight"][1], model.model.embed_tokens.weight[:64])


def test_a_name_that_is_not_there(base_of: Bases) -> None:
    pair = open_pair(base_of("llama"), None)
    with pytest.raises(BadInput, match=r"Did you mean 'model\.layers\.0\.self_attn\.q_proj'"):
        read.weight(pair, "model.layers.0.self_attn.qproj")


def test_an_adapter_in_training_is_read_as_it_is(base_of: Bases) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base_of("llama")), LoraConfig(r=2, target_modules=["q_proj"])
    )
    first = read.adapter_deltas(model)
    assert len(first) == 2
    assert all(delta.square() == 0.0 for delta in first.values())
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.add_(1)
    now = read.adapter_deltas(model)
    assert all(delta.square() > 0 for delta in now.values())
    assert not any(delta.up.requires_grad for delta in now.values() if isinstance(delta, LowRank))
    assert first.keys() == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}
    assert all(read.model_weight(model, name) is not None for name in first)
