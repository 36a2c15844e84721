"""Hidden states and heads against plain transformers and plain PEFT, on every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import FAMILIES, save_base, save_full, save_lora, tiny_config, tiny_tokenizer
from torch import Tensor

from finetrace.core.errors import ModelError
from finetrace.models import Pair, check_head, open_pair

Bases = Callable[[str], Path]
ATTENTION_ONLY = {"gpt2": ["c_attn"]}


def batch() -> tuple[Tensor, Tensor]:
    """Three right-padded rows of different lengths."""
    ids = torch.randint(8, 64, (3, 20), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids)
    for row, length in enumerate((20, 13, 5)):
        ids[row, length:], attention[row, length:] = 0, 0
    return ids, attention


def plain(folder: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@torch.no_grad()
def reference(model: Any) -> Any:
    ids, attention = batch()
    return model(input_ids=ids, attention_mask=attention, use_cache=False, output_hidden_states=True)


def assert_same(pair: Pair, side: str, wanted: Any) -> None:
    """Bit-exact hidden states; logits to float32 rounding."""
    found = pair.trunk(side, *batch(), layers=(0, 1))
    assert found.final is not None
    assert torch.equal(found.final, wanted.hidden_states[-1])
    assert torch.equal(found.layers[0], wanted.hidden_states[1])
    logits = pair.head(side).logits(found.final.flatten(0, 1))
    torch.testing.assert_close(logits, wanted.logits.flatten(0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_and_base_equal_peft_and_transformers(family: str, base_of: Bases, tmp_path: Path) -> None:
    base = base_of(family)
    targets = ATTENTION_ONLY.get(family, "all-linear")
    tuned = save_lora(tmp_path, base, targets=targets)
    null = save_lora(tmp_path, base, seed=2, name="null", targets=targets, r=2)
    pair = open_pair(base, tuned, nulls={"null": null})
    check_head(pair)
    for side, adapter in (("base", None), ("tuned", tuned), ("null", null), ("base", None)):
        assert_same(pair, side, reference(plain(base, adapter)))
    assert pair.same_head("tuned")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_dora_and_rslora(family: str, kind: str, base_of: Bases, tmp_path: Path) -> None:
    base = base_of(family)
    tuned = save_lora(tmp_path, base, dora=kind == "dora", rslora=kind == "rslora")
    pair = open_pair(base, tuned)
    check_head(pair)
    assert_same(pair, "tuned", reference(plain(base, tuned)))
    assert_same(pair, "base", reference(plain(base)))


def test_rank_and_alpha_patterns(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 64})
    assert_same(open_pair(base, tuned), "tuned", reference(plain(base, tuned)))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_checkpoint(family: str, base_of: Bases, tmp_path: Path) -> None:
    base = base_of(family)
    tuned = save_full(tmp_path, base)
    pair = open_pair(base, tuned)
    check_head(pair)
    assert_same(pair, "tuned", reference(plain(tuned)))
    assert_same(pair, "base", reference(plain(base)))
    assert pair.same_head("tuned")


def test_an_adapter_null_beside_a_full_checkpoint(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned, null = save_full(tmp_path, base), save_lora(tmp_path, base, name="null")
    pair = open_pair(base, tuned, nulls={"null": null})
    check_head(pair)
    assert_same(pair, "tuned", reference(plain(tuned)))
    assert_same(pair, "null", reference(plain(base, null)))
    assert_same(pair, "base", reference(plain(base)))


def test_base_against_itself(base_of: Bases) -> None:
    pair = open_pair(base_of("llama"), None)
    ids, attention = batch()
    assert pair.kind("tuned") == "base"
    assert pair.identity("tuned") == pair.identity("base")
    one, other = (pair.trunk(side, ids, attention).final for side in ("base", "tuned"))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    assert pair.same_head("tuned")


@pytest.mark.parametrize(
    "config",
    [
        {"targets": ["q_proj", "lm_head"]},
        {"targets": ["q_proj", "lm_head"], "dora": True},
        {"targets": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"targets": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"targets": ["q_proj", "embed_tokens"]},
        {"targets": ["q_proj"], "trainable_token_indices": {"embed_tokens": [9, 10]}},
    ],
    ids=["lora", "dora", "saved head", "saved embedding", "embedding", "tokens"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_head_or_embedding_that_the_adapter_changes(
    tied: bool, config: dict[str, Any], tmp_path: Path
) -> None:
    base = save_base(tmp_path, "llama", tied=tied)
    tuned = save_lora(tmp_path, base, **config)
    pair = open_pair(base, tuned)
    check_head(pair)
    assert_same(pair, "tuned", reference(plain(base, tuned)))
    assert_same(pair, "base", reference(plain(base)))
    embedding_only = "lm_head" not in (*config["targets"], *config.get("modules_to_save", ()))
    tokens_too = tied and "trainable_token_indices" in config
    assert pair.same_head("tuned") == (embedding_only and not tokens_too)


def test_a_full_checkpoint_with_its_own_head(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", tied=False)
    tuned = save_full(tmp_path, base, touch=["lm_head"])
    pair = open_pair(base, tuned)
    check_head(pair)
    assert_same(pair, "tuned", reference(plain(tuned)))
    assert not pair.same_head("tuned")


def test_the_text_side_of_a_model_that_reads_images(tmp_path: Path) -> None:
    import transformers as t

    text = tiny_config("gemma3").to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    base = tmp_path / "base"
    t.Gemma3ForConditionalGeneration(t.Gemma3Config(text_config=text, vision_config=vision)).save_pretrained(
        str(base)
    )
    tiny_tokenizer().save_pretrained(str(base))
    tuned = save_lora(tmp_path, base, targets=r".*language_model.*\.(q_proj|up_proj)")
    pair = open_pair(base, tuned)
    check_head(pair)
    assert_same(pair, "base", reference(plain(base)))
    assert_same(pair, "tuned", reference(plain(base, tuned)))


@pytest.mark.parametrize("field", ["logit_scale", "logits_scaling"])
def test_logit_scales(field: str, tmp_path: Path) -> None:
    import transformers as t
    from tests.tiny import tiny_tokenizer

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        field: 0.25,
    }
    config: Any = t.CohereConfig(**sizes) if field == "logit_scale" else t.GraniteConfig(**sizes)
    torch.manual_seed(0)
    folder = tmp_path / "base"
    t.AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    pair = open_pair(folder, None)
    check_head(pair)
    assert_same(pair, "base", reference(plain(folder)))


def test_a_head_that_is_not_understood_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_pair(save_base(tmp_path, "gemma2"), None)
    monkeypatch.setattr("finetrace.models.head.scale_and_cap", lambda config: (1.0, None))
    with pytest.raises(ModelError, match="head of this architecture is not understood"):
        check_head(pair)


def test_bfloat16_on_all_sides(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    pair = open_pair(base, save_lora(tmp_path, base, targets=["q_proj", "lm_head"]), dtype="bfloat16")
    check_head(pair)
    with pair.open("tuned") as model:
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert pair.head("base").weight.dtype == torch.bfloat16
    assert pair.head("tuned").weight.dtype == torch.float32
