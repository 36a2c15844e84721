"""Tiny models, adapters and tokenizers, made in a fraction of a second, for all tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "mistral", "gpt2", "mixtral")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>", "<end>")


def tiny_tokenizer(vocab: int = 64, *, words: Sequence[str] = (), template: str | None = TEMPLATE) -> Any:
    """A word-level tokenizer of `vocab` tokens (special ones, `words`, then w0, w1, ...) that puts <bos> first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *words]
    names += [f"w{number}" for number in range(vocab - len(names))]
    table = {name: row for row, name in enumerate(names[:vocab])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", table["<bos>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[4:])})
    fast.chat_template = template
    return fast


def tiny_config(family: str, *, vocab: int = 64, layers: int = 2, d: int = 32, tied: bool = True) -> Any:
    """A config of the family's own class."""
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "gpt2":
        return t.GPT2Config(n_embd=d, n_layer=layers, n_head=4, n_positions=128, **common)
    common |= {
        "hidden_size": d,
        "intermediate_size": 2 * d,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    if family == "llama":
        return t.LlamaConfig(**common)
    if family == "mistral":
        return t.MistralConfig(sliding_window=16, **common)
    if family == "mixtral":
        return t.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **common)
    common |= {"head_dim": d // 4}
    if family == "qwen3":
        return t.Qwen3Config(**common)
    if family == "gemma2":
        return t.Gemma2Config(
            query_pre_attn_scalar=d // 4, final_logit_softcapping=2.0, sliding_window=16, **common
        )
    if family == "gemma3":
        return t.Gemma3TextConfig(query_pre_attn_scalar=d // 4, sliding_window=16, **common)
    raise ValueError(f"no tiny {family}")


def tiny_model(
    family: str, *, seed: int = 0, vocab: int = 64, layers: int = 2, d: int = 32, tied: bool = True
) -> Any:
    """A random causal language model with logits of a lively size."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, vocab=vocab, layers=layers, d=d, tied=tied))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim >= 2:
                tensor.mul_(5.0)
            elif "norm" in name or "ln_" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def save_base(
    tmp: Path,
    family: str = "llama",
    *,
    name: str = "base",
    shard: str = "5GB",
    tokenizer: Any = None,
    **sizes: Any,
) -> Path:
    """A tiny base with its tokenizer in tmp/name."""
    folder = tmp / name
    tiny_model(family, **sizes).save_pretrained(folder, max_shard_size=shard)
    (tokenizer or tiny_tokenizer(sizes.get("vocab", 64))).save_pretrained(str(folder))
    return folder


def save_lora(
    tmp: Path,
    base: Path,
    *,
    seed: int = 1,
    r: int = 4,
    name: str = "lora",
    dora: bool = False,
    rslora: bool = False,
    scale: float = 0.05,
    targets: Sequence[str] | str = "all-linear",
    **config: Any,
) -> Path:
    """A random adapter (its B not zero) for the base in tmp/name; `scale` is B's standard deviation."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(seed)
        wanted = targets if isinstance(targets, str) else list(targets)
        settings = LoraConfig(
            r=r,
            lora_alpha=2 * r,
            target_modules=wanted,
            use_dora=dora,
            use_rslora=rslora,
            task_type="CAUSAL_LM",
            **config,
        )
        adapted = get_peft_model(model, settings)
        with torch.no_grad():
            for key, tensor in adapted.named_parameters():
                if "lora_B" in key or "lora_embedding_A" in key:
                    tensor.normal_(0.0, scale)
                elif "lora_magnitude" in key or "modules_to_save" in key or "trainable_tokens" in key:
                    tensor.mul_(1.0 + scale * torch.randn_like(tensor))
        adapted.save_pretrained(str(tmp / name), save_embedding_layers=False)
    return tmp / name


def save_full(
    tmp: Path,
    base: Path,
    *,
    seed: int = 1,
    name: str = "full",
    touch: Sequence[str] = ("q_proj", "c_attn"),
    scale: float = 0.02,
    tokenizer: Any = None,
    shard: str = "5GB",
) -> Path:
    """The base with noise on every tensor whose name holds one of `touch`, and the base's tokenizer, in tmp/name."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if any(part in key for part in touch):
                tensor.add_(scale * torch.randn_like(tensor))
    model.save_pretrained(tmp / name, max_shard_size=shard)
    (tokenizer or _tokenizer_of(base)).save_pretrained(str(tmp / name))
    return tmp / name


def _tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
