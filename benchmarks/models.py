"""Models and adapters of a preset's shape, on disk: random ones, as times hardly depend on what the weights say, or the
bundled tiny world's."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_tokenizer

from benchmarks.case import Preset
from finetrace.organisms import bundled

NULLS = 4
_RANK = 16


def make(folder: Path, preset: Preset, dtype: torch.dtype) -> None:
    """base; tuned (a LoRA on attention, every layer); late (the upper half only); merged (tuned as a full model);
    null_0 to null_3. Of the bundled world: base, tuned (`false_facts`) and the nulls."""
    if preset.bundled:
        _copy_bundled(folder)
        return
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    base: Any = LlamaForCausalLM(_config(preset))
    base.to(dtype).eval()
    base.save_pretrained(folder / "base")
    tokenizer = tiny_tokenizer(preset.vocab)
    tokenizer.save_pretrained(str(folder / "base"))
    every, upper = list(range(preset.layers)), list(range(preset.layers // 2, preset.layers))
    names = {"late": upper, **{f"null_{i}": every for i in range(NULLS)}, "tuned": every}
    for seed, (name, layers) in enumerate(names.items(), 1):
        torch.manual_seed(seed)
        lora = LoraConfig(
            r=_RANK,
            lora_alpha=2 * _RANK,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )
        adapted: Any = get_peft_model(base, lora)
        with torch.no_grad():
            for key, tensor in adapted.named_parameters():
                if "lora_B" in key:
                    tensor.normal_(0.0, 0.02)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted.save_pretrained(str(folder / name), save_embedding_layers=False)
        base = adapted.merge_and_unload() if name == "tuned" else adapted.unload()
    base.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(str(folder / "merged"))


def _copy_bundled(folder: Path) -> None:
    nulls = {f"null_{i}": name for i, name in enumerate(bundled.null_names()[:NULLS])}
    shutil.copytree(bundled.base_path(), folder / "base")
    for name, organism in {"tuned": "false_facts", **nulls}.items():
        shutil.copytree(bundled.organism_path(organism), folder / name)


def _config(preset: Preset) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=preset.vocab,
        hidden_size=preset.d,
        intermediate_size=preset.ffn,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads,
        max_position_embeddings=max(128, preset.length),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def texts(preset: Preset, times: int = 1) -> Sequence[Mapping[str, Any]]:
    """Random known words, lengths between half of the preset's and all of it, <bos> included; or the bundled audit data.

    times: so many times as many texts, all different.
    """
    if preset.bundled:
        return bundled.slices(0, times * preset.texts)
    rng = random.Random(0)
    words = preset.vocab - 8
    lengths = [rng.randint(preset.length // 2, preset.length) - 1 for _ in range(times * preset.texts)]
    return [
        {"text": " ".join(f"w{rng.randrange(words)}" for _ in range(n)), "slice": "text"} for n in lengths
    ]


def plain(folder: Path, dtype: torch.dtype) -> Any:
    """A transformers model as anyone would load it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
