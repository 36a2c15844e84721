"""Merging: what PEFT merges, rounded once; made once, whole or not at all."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.tiny import save_base, tiny_model, tiny_tokenizer

from finetrace.core.errors import ModelError
from finetrace.data.examples import make_examples
from finetrace.finetune.sft import LoraRecipe, save_adapter, train_lora
from finetrace.models.identity import identity
from finetrace.models.source import resolve
from finetrace.organisms import merging


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base in bf16 and an adapter of it on one layer."""
    folder = tmp_path_factory.mktemp("merging")
    base = save_base(folder / "base", "llama")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    recipe = LoraRecipe(r=2, lr=1e-2, steps=8, batch=2, layers=(1,), targets=("q_proj", "down_proj"))
    log = train_lora(model, tokenizer, make_examples([{"text": "w1 w2 w3"}] * 4, tokenizer), recipe, seed=0)
    save_adapter(log.model, folder / "adapter", base="some/base", dtype=torch.bfloat16)
    return base, folder / "adapter"


def test_it_is_what_peft_merges(pair, tmp_path):
    from transformers import AutoModelForCausalLM

    from finetrace.models.loading import quiet

    base, adapter = pair
    made = load_file(merging.merge(base, adapter, tmp_path / "out") / "model.safetensors")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()  # pyright: ignore
    before, moved = load_file(base / "model.safetensors"), []
    for name, weight in made.items():
        assert weight.dtype == before[name].dtype
        assert torch.allclose(weight.double(), theirs[name].double(), rtol=2**-8, atol=1e-6)
        if not torch.equal(weight, before[name]):
            moved.append(name)
    assert moved
    assert {name.split(".")[2] for name in moved} == {"1"}, "only the layer that the adapter is on"


def test_it_is_made_once_and_named_by_its_content(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETRACE_CACHE", str(tmp_path / "cache"))
    base, adapter = pair
    first = merging.cached_merge(base, adapter, "merged")
    content, stamp = identity(resolve(first)), (first / "model.safetensors").stat().st_mtime_ns
    assert merging.cached_merge(base, adapter, "merged") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    shutil.rmtree(tmp_path / "cache")
    assert identity(resolve(merging.cached_merge(base, adapter, "merged"))) == content


def test_a_stopped_merge_leaves_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETRACE_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(merging.shutil, "copy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merging.cached_merge(pair[0], pair[1], "merged")
    assert not [path for path in (tmp_path / "cache" / "organisms").rglob("*") if path.is_file()]
    assert (merging.cached_merge(pair[0], pair[1], "merged") / "config.json").exists()


def test_an_adapter_of_another_shape_is_refused(pair, tmp_path):
    tiny_model("llama", d=64).to(torch.bfloat16).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="does not fit its base"):
        merging.merge(tmp_path / "other", pair[1], tmp_path / "out")
