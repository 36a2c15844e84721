"""Does the tuned side change anything, and by how much?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_base, save_full, save_lora

from finetrace.core.errors import ModelError
from finetrace.models import open_pair
from finetrace.weights import Effect, effect, require_effect

Bases = Callable[[str], Path]
FILE = "adapter_model.safetensors"


def rewritten(tuned: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    weights = load_file(tuned / FILE)
    change(weights)
    save_file(weights, tuned / FILE, {"format": "pt"})
    return tuned


@torch.no_grad()
def merged_norm(base: Path, tuned: Path) -> float:
    """The relative norm of the change, from PEFT's own merged weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).named_parameters())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    after = dict(PeftModel.from_pretrained(model, tuned).merge_and_unload().named_parameters())
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    delta = sum(float((after[key] - before[key]).square().sum()) for key in moved)
    return (delta / sum(float(before[key].square().sum()) for key in moved)) ** 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_the_size_of_a_change(family: str, kind: str, base_of: Bases, tmp_path: Path) -> None:
    base = base_of(family)
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "up_proj"]
    tuned = save_lora(tmp_path, base, dora=kind == "dora", rslora=kind == "rslora", targets=targets)
    found = effect(open_pair(base, tuned))
    assert (found.status, found.changed, found.total) == ("applied", 4, 4)
    assert found.relative_norm == pytest.approx(merged_norm(base, tuned), rel=1e-5)
    require_effect(found)


@pytest.mark.parametrize("dora", [False, True])
def test_an_untrained_adapter_is_a_no_op(dora: bool, base_of: Bases, tmp_path: Path) -> None:
    found = effect(open_pair(base_of("llama"), save_lora(tmp_path, base_of("llama"), scale=0.0, dora=dora)))
    assert (found.status, found.changed, found.relative_norm) == ("no-op", 0, 0.0)
    with pytest.raises(ModelError, match=r"^The adapter changes nothing: .* saved before training") as caught:
        require_effect(found)
    assert "\n" not in str(caught.value)


def test_one_number_is_a_change(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, scale=0.0, targets=["q_proj"])
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    found = effect(open_pair(base, rewritten(tuned, lambda w: w[key][3, 2].fill_(1e-12))))
    assert (found.status, found.changed, found.total) == ("applied", 1, 2)


def test_a_dora_magnitude_alone_is_a_change(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, scale=0.0, dora=True, targets=["q_proj"])
    rewritten(tuned, lambda w: [v.mul_(1.001) for k, v in w.items() if "magnitude" in k])
    found = effect(open_pair(base, tuned))
    assert found.changed == 2
    assert found.relative_norm == pytest.approx(1e-3, rel=1e-3)


def test_keys_that_do_not_land(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj"])
    old, new = "layers.1.self_attn.q_proj", "layers.7.self_attn.q_proj"
    rewritten(tuned, lambda w: w.update({k.replace(old, new): w.pop(k) for k in list(w) if old in k}))
    found = effect(open_pair(base, tuned))
    assert (found.status, found.changed, found.total) == ("partial", 1, 2)
    assert all("layers.7" in key for key in found.unexpected)
    assert all("layers.1" in key for key in found.missing)
    assert (len(found.unexpected), len(found.missing)) == (2, 2)
    assert "2 keys of the file have no place" in found.describe()
    require_effect(found)


def test_no_key_that_lands(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj"])
    rewritten(tuned, lambda w: w.update({k.replace("base_model.", "module."): w.pop(k) for k in list(w)}))
    found = effect(open_pair(base, tuned))
    assert found.status == "no-op"
    with pytest.raises(ModelError, match="changes nothing: its file's keys did not land"):
        require_effect(found)


def test_saved_modules(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj"], modules_to_save=["lm_head"])
    assert effect(open_pair(base, tuned)).changed == 3
    same = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    rewritten(tuned, lambda w: [w.update({k: same.clone()}) for k in list(w) if "lm_head" in k])
    assert effect(open_pair(base, tuned)).changed == 2


def test_single_tokens_and_embeddings(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("tokens", {"targets": ["q_proj"], "trainable_token_indices": {"embed_tokens": [9, 10]}}),
        ("embedding", {"targets": ["q_proj", "embed_tokens"]}),
    )
    for name, config in cases:
        found = effect(open_pair(base, save_lora(tmp_path, base, name=name, **config)))
        assert found.status == "applied"
        assert found.changed == found.total >= 3
    still = save_lora(tmp_path, base, name="still", scale=0.0, **cases[0][1])
    assert effect(open_pair(base, still)).status == "no-op"


def test_the_base_is_identical_with_itself(base_of: Bases) -> None:
    found = effect(open_pair(base_of("llama"), None))
    assert found.status == "identical"
    require_effect(found)


def test_full_checkpoints(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_full(tmp_path, base, touch=["layers.0.mlp.up_proj"], scale=1e-3)
    copy, null = save_full(tmp_path, base, touch=[], name="copy"), save_lora(tmp_path, base)
    pair = open_pair(base, tuned, nulls={"copy": copy, "null": null})
    found = effect(pair)
    assert (found.status, found.changed, found.unit) == ("applied", 1, "tensors")
    assert found.total == 20
    assert 0 < found.relative_norm < 1e-2
    assert effect(pair, "null").status == "applied"
    nothing = effect(pair, "copy")
    assert (nothing.status, nothing.changed) == ("no-op", 0)
    with pytest.raises(ModelError, match="The full checkpoint 'copy' changes nothing: all 20 tensors"):
        require_effect(nothing)


def test_mixture_of_experts(tmp_path: Path) -> None:
    base = save_base(tmp_path, "mixtral")
    experts = ["mlp.experts.down_proj"]
    tuned = save_lora(tmp_path, base, targets=["q_proj"], target_parameters=experts)
    found = effect(open_pair(base, tuned))
    assert (found.status, found.changed, found.total) == ("applied", 4, 4)


def test_what_an_effect_says() -> None:
    assert (
        Effect("tuned", "applied", 3, 4, relative_norm=0.0123).describe()
        == "3 of 4 modules change, by 1.23% of their norm."
    )
    assert "by 1.0e-06" in Effect("tuned", "applied", 3, 4, relative_norm=1e-6).describe()
