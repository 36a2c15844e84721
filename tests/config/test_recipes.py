"""The shipped recipes are the seeds', field by field, and every value of one can be set from outside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from finetrace.config import SETTINGS, as_settings, compose, find_recipe, recipe_names
from finetrace.core.errors import ConfigErrors
from finetrace.finetune.recipe import TrainRecipe

SEEDS = ("seed000_tinyllama", "seed001_qlora_llama2_7b", "seed003_alpaca_drift")
TINY = ("seed000_tinyworld", "seed001_tinyworld", "seed003_tinyworld")
DOCUMENTED = (
    "recipe=seed003_alpaca_drift data=my.jsonl model=org/mine max_steps=100 lr=1e-4 batch=4 lora.r=8 lora.alpha=16 "
    "snip.top_k=0.01 set_diff.p=0.1 drift.every=10"
)
# Each seed's own names and values, as its text and its code give them, beside ours.
NAMED = {
    "seed000_tinyllama": {
        "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "lora.r": 16,
        "lora.alpha": 32,
        "lora.dropout": 0.05,
        "lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "quant": "none",
        "data.source": "bundled",
        "data.max_tokens": 512,
        "train.max_steps": 300,
        "train.lr": 2e-4,
        "train.batch": 2,
        "train.accumulate": 1,
        "train.weight_decay": 0.01,
        "train.schedule": "linear",
        "train.warmup": 20,
        "train.clip": 1.0,
        "train.seed": 13,
    },
    "seed001_qlora_llama2_7b": {
        "model": "meta-llama/Llama-2-7b-chat-hf",
        "lora.r": 32,
        "lora.alpha": 32,
        "lora.dropout": 0.05,
        "lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "quant": "nf4",
        "data.source": "bundled",
        "data.max_tokens": 1024,
        "train.dtype": "float16",
        "train.epochs": 3,
        "train.max_steps": None,
    },
    "seed003_alpaca_drift": {
        "model": "meta-llama/Llama-2-7b-chat-hf",
        "lora.r": 8,
        "lora.alpha": 16,
        "lora.dropout": 0.1,
        "lora.targets": ["q_proj", "v_proj", "o_proj"],
        "quant": "none",
        "data.source": "tatsu-lab/alpaca",
        "data.revision": "dce01c9b08f87459cf36a430d809084718273017",
        "data.max_tokens": 512,
        "train.dtype": "bfloat16",
        "train.epochs": 1,
        "train.max_steps": None,
        "train.lr": 1e-4,
        "train.batch": 4,
        "train.accumulate": 4,
        "snip.top_k": 0.01,
        "set_diff.p": 0.1,
        "set_diff.q": 0.1,
        "drift.every": 100,
    },
}
# What a tiny-world edition may change of its seed.
DIFFERS = {
    "name", "model", "data.source", "data.revision", "data.split", "data.max_tokens", "train.lr", "train.dtype",
    "train.batch", "train.accumulate", "train.max_steps", "train.warmup", "train.gradient_checkpointing",
    "train.checkpoint_every", "train.epochs", "drift.every", "probe.every",
}  # fmt: skip


def recipe(*words: str, config_dir: Path | None = None) -> TrainRecipe:
    return compose(words, config_dir)


def problems(*words: str, config_dir: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigErrors) as error:
        compose(words, config_dir)
    return error.value.problems


def test_the_shipped_recipes_are_these():
    assert recipe_names() == sorted((*SEEDS, *TINY))


@pytest.mark.parametrize("name", SEEDS)
def test_a_recipe_has_its_seeds_values(name: str):
    found = as_settings(recipe(f"recipe={name}"))
    assert {key: found[key] for key in NAMED[name]} == NAMED[name]
    assert found["name"] == name


@pytest.mark.parametrize(("tiny", "seed"), list(zip(TINY, SEEDS, strict=True)))
def test_a_tiny_edition_is_the_seed_but_for_the_model_the_data_and_how_long(tiny: str, seed: str):
    ours, theirs = as_settings(recipe(f"recipe={tiny}")), as_settings(recipe(f"recipe={seed}"))
    assert {key for key in SETTINGS if ours[key] != theirs[key]} <= DIFFERS
    assert ours["model"] == "tinyworld"
    assert ours["data.source"].startswith("tinyworld/")


@pytest.mark.parametrize("name", [*SEEDS, *TINY])
def test_every_recipe_says_what_it_is_and_has_no_value_that_it_does_not_know(name: str):
    file = find_recipe(name)
    assert file.summary.endswith(".")
    assert recipe(f"recipe={name}").problems() == []


def test_the_documented_overrides():
    found = as_settings(recipe(*DOCUMENTED.split()))
    wanted = {
        "model": "org/mine",
        "data.source": "my.jsonl",
        "train.max_steps": 100,
        "train.lr": 1e-4,
        "train.batch": 4,
        "lora.r": 8,
        "lora.alpha": 16,
        "snip.top_k": 0.01,
        "set_diff.p": 0.1,
        "drift.every": 10,
    }
    assert {key: found[key] for key in wanted} == wanted


OTHER: dict[str, tuple[str, Any]] = {
    "name": ("mine", "mine"),
    "model": ("org/other", "org/other"),
    "revision": ("abc", "abc"),
    "kind": ("full", "full"),
    "quant": ("nf4", "nf4"),
    "lora.r": ("3", 3),
    "lora.alpha": ("5", 5.0),
    "lora.dropout": ("0.25", 0.25),
    "lora.targets": ("[q_proj,k_proj]", ["q_proj", "k_proj"]),
    "lora.layers": ("0,1", [0, 1]),
    "lora.rslora": ("true", True),
    "lora.dora": ("True", True),
    "data.source": ("org/rows", "org/rows"),
    "data.revision": ("abc", "abc"),
    "data.split": ("train[:10]", "train[:10]"),
    "data.max_tokens": ("77", 77),
    "data.packing": ("true", True),
    "train.schedule": ("cosine", "cosine"),
    "train.dtype": ("float32", "float32"),
    "train.gradient_checkpointing": ("true", True),
    "train.warmup": ("0.5", 0.5),
    "train.epochs": ("2.5", 2.5),
    "trackers": ("[tensorboard,wandb]", ["tensorboard", "wandb"]),
    "snip.top_k": ("0.2", 0.2),
    "set_diff.p": ("0.2", 0.2),
    "set_diff.q": ("0.2", 0.2),
    "scan.limit": ("0.5", 0.5),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_value_is_open_to_an_override(name: str):
    text, value = OTHER.get(name, ("7", 7))
    words = ["recipe=seed000_tinyllama", f"{name}={text}"]
    if name == "kind":
        words.append("quant=none")
    before, after = as_settings(recipe(words[0])), as_settings(recipe(*words))
    assert after[name] == value
    changed = {key for key in SETTINGS if before[key] != after[key]}
    forgotten = {
        "model": {"revision"},
        "data.source": {"data.revision"},
        "train.epochs": {"train.max_steps", "train.warmup"},
        "train.max_steps": {"train.warmup"},
    }
    assert changed - forgotten.get(name, set()) == {name}


def test_settings_written_out_give_the_recipe_back(tmp_path: Path):
    made = recipe("recipe=seed003_alpaca_drift", "lora.layers=[0,3]", "trackers=[tensorboard]")
    (tmp_path / "again.yaml").write_text(json.dumps(as_settings(made)))
    assert recipe(f"recipe={tmp_path / 'again.yaml'}") == made


def test_later_words_win_and_short_names_are_dotted_ones():
    made = recipe("recipe=seed000_tinyllama", "train.lr=1", "lr=2e-3", "r=4", "dropout=0", "max_tokens=99")
    assert made.train.lr == 2e-3
    assert (made.lora.r, made.lora.dropout, made.data.max_tokens) == (4, 0, 99)


def test_another_data_set_or_model_forgets_the_revision_of_the_recipes():
    mine = recipe("recipe=seed003_alpaca_drift", "data=mine.jsonl").data
    assert (mine.source, mine.revision, mine.split) == ("mine.jsonl", None, None)
    kept = recipe("recipe=seed003_alpaca_drift", "data=org/mine", "data.revision=v2").data
    assert kept.revision == "v2"


def test_epochs_that_are_asked_for_win_over_a_recipes_steps():
    made = recipe("recipe=seed000_tinyllama", "epochs=2").train
    assert (made.epochs, made.max_steps) == (2, None)
    assert recipe("recipe=seed000_tinyllama", "epochs=2", "max_steps=9").train.max_steps == 9


def test_a_warm_up_in_steps_is_the_same_share_of_another_number_of_them():
    assert recipe("recipe=seed000_tinyllama", "max_steps=15").train.warmup == pytest.approx(20 / 300)
    assert recipe("recipe=seed000_tinyllama", "max_steps=15", "warmup=5").train.warmup == 5


def test_without_a_recipe_the_defaults_are_under_what_is_typed():
    made = recipe("model=org/mine", "data=mine.jsonl")
    assert made == dataclasses.replace(
        TrainRecipe(model="org/mine"), data=dataclasses.replace(TrainRecipe().data, source="mine.jsonl")
    )
    assert problems("lr=1e-3") == ("model is empty; give a folder or a hub id",)
    assert "seed000_tinyworld" in problems()[0]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lora.rr=3", "There is no setting 'lora.rr'. Did you mean 'lora.r'?"),
        ("max_step=3", "Did you mean 'max_steps'?"),
        ("train.learning_rte=3", "There is no setting 'train.learning_rte'."),
        ("droput=0.1", "Did you mean 'dropout'?"),
        ("snip.topk=0.1", "Did you mean 'snip.top_k'?"),
        ("recipe=seed003_alpaca_drfit", "Did you mean 'seed003_alpaca_drift'?"),
        ("every=3", "There is more than one 'every': drift.every, probe.every."),
        ("lora=3", "'lora' has settings of its own and takes no value: lora.r, lora.alpha"),
        ("seed000_tinyworld", "Did you mean recipe=seed000_tinyworld?"),
        ("lr", "'lr' is no setting: write key=value"),
        ("=3", "'=3' is no setting"),
        ("lr=fast", "train.lr is 'fast'; it takes a number"),
        ("lora.r=1.5", "lora.r is '1.5'; it takes a whole number"),
        ("lora.dora=2", "lora.dora is '2'; it takes true or false"),
        ("lora.layers=[a]", "lora.layers is '[a]'; it takes whole numbers, as in [0, 1], or null"),
        ("lr=null", "train.lr is 'null'; it takes a number"),
        ("snip.top_k=1", "snip.top_k is 1.0; it must be a share above 0 and below 1"),
        ("set_diff.p=0", "set_diff.p is 0.0; it must be a share above 0 and below 1"),
        ("quant=int3", "quant is 'int3'; known: none, nf4"),
        ("lr=nan", "train.lr is nan; it must be a number above 0"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(word: str, said: str):
    words = [word] if word.startswith("recipe=") else ["recipe=seed000_tinyllama", word]
    found = problems(*words)
    assert len(found) == 1
    assert said in found[0]


def test_all_mistakes_are_told_at_once():
    words = ["recipe=seed003_alpaca_drift", "lora.rr=3", "lr=abc", "snip.top_k=2", "batch=0", "foo"]
    assert len(problems(*words)) == 5
