"""Controls that do nothing: identity layers put into a base are found in its files, left out, and change no number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_base, save_full, tiny_tokenizer

from finetrace.core.errors import ModelError
from finetrace.models import Pair, open_pair, preflight
from finetrace.models.idle import idle_blocks
from finetrace.models.source import resolve
from finetrace.weights import effect
from finetrace.weights.stream import match, streamed, streamed_others

Bases = Callable[[str], Path]
IDS = torch.arange(8, 24).reshape(2, 8)


def inserted(
    base: Path, to: Path, places: Sequence[int], silence: Sequence[str] = ("o_proj", "down_proj")
) -> Path:
    """The base with blocks put in so that they are at `places`: copies of its first one whose `silence` is zero."""
    weights = load_file(base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    total = config["num_hidden_layers"] + len(places)
    own = iter(range(config["num_hidden_layers"]))
    made = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    for place in range(total):
        origin = 0 if place in places else next(own)
        for name, tensor in weights.items():
            head, _, rest = name.partition(f".layers.{origin}.")
            if rest:
                idle = place in places and any(part in rest for part in silence)
                made[f"{head}.layers.{place}.{rest}"] = torch.zeros_like(tensor) if idle else tensor.clone()
    if "layer_types" in config:
        kinds = iter(config["layer_types"])
        config["layer_types"] = ["full_attention" if i in places else next(kinds) for i in range(total)]
    config["num_hidden_layers"] = total
    to.mkdir()
    save_file(made, to / "model.safetensors", {"format": "pt"})
    (to / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(str(to))
    return to


def logits(pair: Pair, side: str) -> torch.Tensor:
    return pair.side(side)(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("family", "places", "silence"),
    [
        ("llama", (0, 2, 4), ("o_proj", "down_proj")),
        ("gemma3", (1, 2), ("o_proj", "down_proj")),
        ("qwen3", (2,), ("v_proj", "up_proj")),
    ],
)
def test_identity_layers_change_nothing(
    family: str, places: tuple[int, ...], silence: tuple[str, ...], base_of: Bases, tmp_path: Path
) -> None:
    base = base_of(family)
    tuned = inserted(base, tmp_path / "deep", places, silence)
    assert idle_blocks(resolve(tuned)) == places
    pair = open_pair(base, tuned, nulls={"calm": tuned})
    assert pair.n_layers == 2
    assert torch.equal(logits(pair, "base"), logits(pair, "tuned"))
    assert torch.equal(logits(pair, "base"), logits(pair, "calm"))
    assert effect(pair).status == "no-op"
    assert pair.identity("tuned") != pair.identity("base")
    notes = {check.name: check.text for check in preflight(pair)}
    assert (
        f"{len(places)} identity layers of the {2 + len(places)} of 'tuned' were left out" in notes["layers"]
    )
    assert "layers of the null calm" in notes
    found = match(resolve(base), resolve(tuned))
    assert not found.missing
    assert not found.extra
    assert not list(streamed(resolve(base), resolve(tuned)))
    assert not list(streamed_others(resolve(base), resolve(tuned)))


def test_the_model_as_it_is_says_the_same(base_of: Bases, tmp_path: Path) -> None:
    """What is left out is right to be left out: transformers' own model with all layers has the base's logits."""
    from transformers import AutoModelForCausalLM

    tuned = inserted(base_of("llama"), tmp_path / "deep", (0, 3))
    whole = AutoModelForCausalLM.from_pretrained(tuned).eval()
    assert whole.config.num_hidden_layers == 4
    with torch.inference_mode():
        assert torch.equal(whole(input_ids=IDS).logits, logits(open_pair(base_of("llama"), None), "base"))


def test_a_change_beside_identity_layers_is_found(base_of: Bases, tmp_path: Path) -> None:
    changed = save_full(tmp_path, base_of("llama"), touch=["layers.1.self_attn.q_proj"])
    tuned = inserted(changed, tmp_path / "deep", (1,))
    pair = open_pair(base_of("llama"), tuned)
    assert effect(pair).changed == 1
    assert torch.equal(logits(pair, "tuned"), logits(open_pair(base_of("llama"), changed), "tuned"))
    found = [delta.module for delta in streamed(resolve(base_of("llama")), resolve(tuned))]
    assert found == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("silence", [("o_proj",), ("down_proj",), ("up_proj", "q_proj")])
def test_a_block_that_does_something_is_no_identity(
    silence: tuple[str, ...], base_of: Bases, tmp_path: Path
) -> None:
    tuned = inserted(base_of("llama"), tmp_path / "deep", (1,), silence)
    assert idle_blocks(resolve(tuned)) == ()
    with pytest.raises(ModelError, match="its num_hidden_layers is 3, the base's 2"):
        open_pair(base_of("llama"), tuned).load()


def test_a_bias_makes_it_one_that_does_something(base_of: Bases, tmp_path: Path) -> None:
    tuned = inserted(base_of("llama"), tmp_path / "deep", (1,))
    file = tuned / "model.safetensors"
    weights: dict[str, Any] = load_file(file)
    for value, expected in ((0.0, (1,)), (-0.0, (1,)), (1e-30, ())):
        weights["model.layers.1.self_attn.o_proj.bias"] = torch.full((32,), value)
        save_file(weights, file, {"format": "pt"})
        assert idle_blocks(resolve(tuned)) == expected
    weights["model.layers.1.self_attn.o_proj.bias"] = torch.zeros(32)
    weights["model.layers.1.gate"] = torch.zeros(1)
    save_file(weights, file, {"format": "pt"})
    assert idle_blocks(resolve(tuned)) == ()  # A tensor that is not known may do anything.


def test_a_bias_behind_silent_values_makes_it_one_that_does_something(base_of: Bases, tmp_path: Path) -> None:
    tuned = inserted(base_of("llama"), tmp_path / "deep", (1,), ("v_proj", "up_proj"))
    assert idle_blocks(resolve(tuned)) == (1,)
    file = tuned / "model.safetensors"
    weights = load_file(file) | {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}
    save_file(weights, file, {"format": "pt"})
    assert idle_blocks(resolve(tuned)) == ()


def test_idle_layers_of_the_base_itself_stay(base_of: Bases, tmp_path: Path) -> None:
    base = inserted(base_of("llama"), tmp_path / "base", (1,))
    deeper = inserted(base_of("llama"), tmp_path / "deep", (1, 3))
    pair = open_pair(base, deeper)
    assert pair.source("tuned").left_out == (3,)
    assert torch.equal(logits(pair, "base"), logits(pair, "tuned"))


def test_shards_are_read_one_by_one(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    tuned = inserted(base, tmp_path / "deep", (1,))
    weights = load_file(tuned / "model.safetensors")
    (tuned / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"one": names[::2], "two": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, tuned / f"{part}.safetensors", {"format": "pt"})
    index = {name: f"{part}.safetensors" for part, own in parts.items() for name in own}
    (tuned / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    pair = open_pair(base, tuned)
    assert torch.equal(logits(pair, "base"), logits(pair, "tuned"))
