"""The trainer: it learns, is deterministic, and counts only what it should."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.core.errors import BadInput, DataError, ModelError
from finetrace.data.examples import make_examples
from finetrace.finetune.sft import FullRecipe, LoraRecipe, save_adapter, train_full, train_lora

RECIPE = LoraRecipe(r=4, lr=1e-2, steps=30, batch=4, warmup=3)
ROWS = [
    {"text": "w1 w2 w3 w4 w5"},
    {"messages": [{"role": "user", "content": "w6"}, {"role": "assistant", "content": "w7 w8"}]},
]


def trained(seed: int = 0, recipe: LoraRecipe = RECIPE, family: str = "llama"):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family)
    return train_lora(model, tokenizer, make_examples(ROWS * 4, tokenizer), recipe, seed=seed)


def adapter(log) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in log.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_learns(family):
    log = trained(family=family)
    assert log.losses[-1] < 0.5 * log.losses[0]
    assert len(log.losses) == RECIPE.steps
    assert not log.model.training


def test_it_is_deterministic():
    first, again, other = adapter(trained(1)), adapter(trained(1)), adapter(trained(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_leaves_the_global_generator_alone():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    examples = make_examples(ROWS, tokenizer)
    state = torch.random.get_rng_state()
    train_lora(model, tokenizer, examples, replace(RECIPE, steps=2, dropout=0.1), seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_base_stays_and_the_adapter_is_float32():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama").to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = train_lora(model, tokenizer, make_examples(ROWS, tokenizer), replace(RECIPE, steps=3), seed=0)
    after = {name.replace(".base_layer", ""): p for name, p in log.model.get_base_model().named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in adapter(log).values()} == {torch.float32}


def test_a_saved_adapter_loads_and_names_no_path(tmp_path):
    log = trained()
    save_adapter(log.model, tmp_path / "out", base="some/base", dtype=torch.bfloat16)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(config["target_modules"])
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out").eval()
    ids = torch.tensor([[1, 9, 10, 11]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, log.model(ids).logits, atol=0.1)


def test_targets_of_texts_and_chats():
    tokenizer = tiny_tokenizer()
    text, chat = make_examples(ROWS, tokenizer)
    assert text.loss.tolist() == [False, False] + [True] * 5, "nothing comes before a text's first token"
    assert text.ids[-1] == tokenizer.eos_token_id
    said = tokenizer.convert_ids_to_tokens(chat.ids[chat.loss].tolist())
    assert said == ["w7", "w8", "<end>"]
    assert not chat.loss[0]


def test_padding_changes_no_loss():
    tokenizer = tiny_tokenizer()
    alone = train_lora(
        tiny_model("llama"),
        tokenizer,
        make_examples([ROWS[1]], tokenizer),
        replace(RECIPE, steps=1, batch=1),
        seed=0,
    )
    long = make_examples([ROWS[1], {"text": "w1 " * 30}], tokenizer)
    long[1].loss[:] = False
    long[1].loss[1] = True
    padded = train_lora(tiny_model("llama"), tokenizer, long, replace(RECIPE, steps=1, batch=2), seed=0)
    assert padded.targets == alone.targets + 1


def test_bad_input_is_said():
    tokenizer = tiny_tokenizer()
    with pytest.raises(BadInput, match="lr must be above 0"):
        train_lora(
            tiny_model("llama"), tokenizer, make_examples(ROWS, tokenizer), replace(RECIPE, lr=0.0), seed=0
        )
    with pytest.raises(DataError, match="no examples"):
        train_lora(tiny_model("llama"), tokenizer, [], RECIPE, seed=0)
    with pytest.raises(DataError, match="nothing to learn"):
        make_examples([{"messages": [{"role": "user", "content": "w1"}]}], tokenizer)


def tuned_whole(seed: int = 0, **changes):
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    recipe = replace(FullRecipe(lr=3e-3, steps=30, batch=4, warmup=3), **changes)
    return train_full(model, tokenizer, make_examples(ROWS * 4, tokenizer), recipe, seed=seed)


def test_a_full_fine_tune_moves_every_weight_and_learns():
    log = tuned_whole()
    assert log.losses[-1] < 0.5 * log.losses[0]
    before = dict(tiny_model("llama").named_parameters())
    assert log.trainable == sum(p.numel() for p in before.values())
    assert all(not torch.equal(p, before[name]) for name, p in log.model.named_parameters())
    assert not log.model.training


def test_a_full_fine_tune_is_deterministic():
    first, again, other = (dict(tuned_whole(seed, steps=4).model.named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_full_fine_tune_refuses_narrow_weights():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama").to(torch.bfloat16)
    with pytest.raises(BadInput, match="load it in float32"):
        train_full(model, tokenizer, make_examples(ROWS, tokenizer), FullRecipe(), seed=0)


def test_an_adapter_on_one_layer_is_on_that_layer_alone():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    recipe = replace(RECIPE, steps=3, layers=(1,), targets=("q_proj", "up_proj"))
    log = train_lora(model, tokenizer, make_examples(ROWS, tokenizer), recipe, seed=0)
    assert {name.split(".layers.")[1].split(".")[0] for name in adapter(log)} == {"1"}
    with pytest.raises(BadInput, match="list of module names"):
        train_lora(model, tokenizer, make_examples(ROWS, tokenizer), replace(RECIPE, layers=(1,)), seed=0)


def test_divergence_is_an_error():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        train_lora(model, tokenizer, make_examples(ROWS, tokenizer), RECIPE, seed=0)


def test_every_example_is_drawn_once_before_any_again():
    from finetrace.finetune.sft import _draws

    drawn = [i for step in _draws(12, replace(RECIPE, steps=6, batch=4), 0) for i in step]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(np.arange(12))
