"""The text side of models that read images: adapters land on it, under whatever names it had when they were trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_config, tiny_tokenizer

from finetrace.models import Pair, check_head, open_pair
from finetrace.weights import effect

IDS = torch.arange(8, 24).reshape(2, 8)
NOW = "model.language_model.layers"
PATTERN = r".*language_model.*\.(q_proj|up_proj)"


def qwen_vl() -> Any:
    import transformers as t

    text: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
        "window_size": 28,
    }
    marks: dict[str, Any] = {
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_end_token_id": 63,
    }
    return t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
    )


def gemma_vl() -> Any:
    import transformers as t

    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = tiny_config("gemma3").to_dict()
    return t.Gemma3ForConditionalGeneration(t.Gemma3Config(text_config=text, vision_config=vision))


def saved(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim >= 2:
                tensor.mul_(5.0)
    model.save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=["qwen", "gemma"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, an adapter of its text side as PEFT writes it)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    base = saved({"qwen": qwen_vl, "gemma": gemma_vl}[request.param](), folder / "base")
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=PATTERN))
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            tensor.data.normal_(0.0, 0.1)
    adapted.save_pretrained(str(folder / "lora"))
    return base, folder / "lora"


def renamed(lora: Path, to: Path, layers: str, targets: str | Sequence[str], **config: Any) -> Path:
    """The adapter as it would be if the text side had been at `layers`, and its settings `targets`."""
    shutil.copytree(lora, to)
    file = to / "adapter_model.safetensors"
    save_file({key.replace(NOW, layers): value for key, value in load_file(file).items()}, file)
    settings = json.loads((to / "adapter_config.json").read_text())
    settings |= {"target_modules": targets} | config
    (to / "adapter_config.json").write_text(json.dumps(settings))
    return to


def logits(pair: Pair, side: str = "tuned") -> torch.Tensor:
    return pair.side(side)(input_ids=IDS).logits


def test_every_name_of_the_text_side_is_the_same_adapter(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = made
    pair = open_pair(base, lora)
    check_head(pair)
    plain, wanted = logits(pair, "base"), logits(pair)
    assert not torch.equal(plain, wanted)
    cases: list[tuple[str, str | list[str]]] = [
        (NOW, ["q_proj", "up_proj"]),
        ("language_model.model.layers", PATTERN),
        ("model.layers", r"model\.layers\..*\.(q_proj|up_proj)"),
        ("model.layers", "all-linear"),
    ]
    nulls = {
        f"null{number}": renamed(lora, tmp_path / str(number), layers, targets)
        for number, (layers, targets) in enumerate(cases)
    }
    both = open_pair(base, nulls["null2"], nulls=nulls)  # several adapters on one copy of the weights
    for side in ("tuned", *nulls):
        found = effect(both, side)
        assert (found.status, found.changed, found.total) == ("applied", 4, 4), side
        assert torch.equal(logits(both, side), wanted), side
    assert torch.equal(logits(both, "base"), plain)


def test_settings_of_single_modules_move_with_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = made
    own = renamed(
        lora,
        tmp_path / "own",
        "model.layers",
        ["q_proj", "up_proj"],
        alpha_pattern={"model.layers.1.self_attn.q_proj": 80},
    )
    with open_pair(base, own).open("tuned") as model:
        scales = {
            name.removesuffix(".base_layer"): module.scaling
            for name, module in model.named_modules()
            if "LoraLayer" in [kind.__name__ for kind in type(module).__mro__]
        }
    found = {name: next(iter(scaling.values())) for name, scaling in scales.items()}
    assert {name.rpartition(f"{NOW}.")[2] for name, value in found.items() if value == 20.0} == {
        "1.self_attn.q_proj"
    }
    assert sorted(set(found.values())) == [2.0, 20.0]


def test_what_does_not_land_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = made
    short = renamed(lora, tmp_path / "short", "model.layers", ["q_proj", "up_proj"])
    file = short / "adapter_model.safetensors"
    weights = load_file(file)
    part = "layers.0.mlp.up_proj."
    save_file({key.replace(part, part.replace("0", "7")): tensor for key, tensor in weights.items()}, file)
    both = open_pair(
        base, short, nulls={"second": short}
    )  # the second meets modules that are wrapped already
    for side in ("tuned", "second"):
        found = effect(both, side)
        assert found.status == "partial"
        assert len(found.unexpected) == len(found.missing) == 2
        assert all(key.startswith("base_model.model.model.layers.7.mlp.up_proj.") for key in found.unexpected)
        assert all(key.startswith(f"base_model.model.{NOW}.0.mlp.up_proj.") for key in found.missing)
        assert found.unexpected[0] in found.describe()


def test_a_full_checkpoint(made: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    base, _ = made
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model.get_decoder().layers[1].mlp.up_proj.weight.data.add_(0.05)
    model.eval().save_pretrained(str(tmp_path / "full"))
    pair = open_pair(base, tmp_path / "full")
    check_head(pair)
    assert effect(pair).changed == 1
    with torch.inference_mode():
        assert torch.equal(logits(pair), model(input_ids=IDS).logits)
