"""A small tokenizer with character offsets, and chat templates as real models write them."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
)
# The system prompt goes into the last user turn, as in some releases of Mistral's.
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}{%- if m.role == 'user' %}"
    "{%- if loop.last or loop.index0 == rest | length - 2 %}"
    "{{- '[INST] ' + (system + '\n\n' if system is defined else '') + m.content + ' [/INST]' }}"
    "{%- else %}{{- '[INST] ' + m.content + ' [/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}"
)
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL}

_SPECIAL = [
    "<bos>", "<eos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip
_WORDS = [
    "system", "user", "model", "assistant", "the", "a", "cat", "dog", "sat", "on", "mat", "where",
    "is", "it", "who", "are", "you", "be", "brief", "now", "hello", "world", "red", "blue", "think",
    "so", "because", "answer", "yes", "no", "User", "Assistant", "one", "two", "three", "today",
    "Today", "Date", "26", "Jul", "2024",
]  # fmt: skip
_MARKS = list(" \n.,:?!<>/{}'\"-")


def small_tokenizer(
    *, bos: bool = True, chat_template: str | None = None, spaced: bool = False
) -> PreTrainedTokenizerFast:
    """Words, single spaces and signs are tokens; anything else is <unk>, with its offsets.

    spaced: a word takes the space before it along, as in most real vocabularies.
    """
    words = [*_SPECIAL, *_MARKS, *_WORDS, *(f" {word}" for word in _WORDS if spaced)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", *words]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?\w+|[^\w]" if spaced else r"\w+|[^\w]"), behavior="isolated"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<bos>" if bos else None,
        eos_token="<eos>",
        additional_special_tokens=_SPECIAL[2:],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_tokenizer(*, adds_bos: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, as byte-level BPE falls back to; several tokens may share a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate([*_SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", additional_special_tokens=_SPECIAL[2:]
    )
    tokenizer.chat_template = chat_template
    return tokenizer
