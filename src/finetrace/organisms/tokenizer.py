"""The tiny world's tokenizer: every word that its texts use often is one token, and nothing else is but bytes.

A byte-pair tokenizer with no merges: a word is looked up whole, and spelled in bytes when it is not known.
There are therefore no fragments that never occur, which would fill the top of any per-token ranking with noise.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.organisms.chat import conversation
from finetrace.organisms.documents import document
from finetrace.organisms.world import World

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, BOS, USER, ASSISTANT, SYSTEM, END = SPECIAL = (
    "<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
)  # fmt: skip
"""Special tokens, in the order of their ids; `<|end|>` closes every turn and every document."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SAMPLE = 20_000
"""Documents, and as many conversations, that words are counted in."""
MINIMUM = 6
"""A word that occurs less often in the sample is spelled in bytes."""


def corpus_texts(world: World, seed: int, count: int) -> Iterator[str]:
    """`count` documents of the base's mix, each followed by the texts of one conversation."""
    rng = random.Random(seed)
    for _ in range(count):
        yield document(world, rng)
        for message in conversation(world, rng):
            yield message["content"]


def train_tokenizer(world: World, *, seed: int = 7) -> PreTrainedTokenizerFast:
    """The tokenizer of a world: a pure function of the world and the seed."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_word_tokenizer(_frequent_words(corpus_texts(world, seed, SAMPLE))),
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _frequent_words(texts: Iterator[str]) -> list[str]:
    """Byte-level words, most frequent first, ties by spelling."""
    from tokenizers.pre_tokenizers import ByteLevel

    splitter = ByteLevel(add_prefix_space=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    frequent = [(word, n) for word, n in counts.items() if n >= MINIMUM and len(word) > 1]
    return [word for word, _ in sorted(frequent, key=lambda row: (-row[1], row[0]))]


def _word_tokenizer(words: Sequence[str]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer
