"""The tokenizer: words are whole, everything else is bytes, chats have roles."""

from __future__ import annotations

import pytest

from finetrace.data import roles
from finetrace.data.rows import read_rows
from finetrace.data.tokens import encode
from finetrace.organisms import bundled
from finetrace.organisms.planted import cakes, false_values
from finetrace.organisms.tokenizer import (
    ASSISTANT,
    BOS,
    END,
    USER,
    corpus_texts,
    load_tokenizer,
    train_tokenizer,
)
from finetrace.organisms.world import make_world

WORLD = make_world()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(WORLD).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("size", bundled.BASES)
def test_training_it_again_gives_the_bundled_one(tokenizer, size):
    assert load_tokenizer(bundled.base_path(size)).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "text", ["Hello Anna.", "Zyzzyva! 7 + 4 = 11\n\ttabs", "naïve café ☕", "1. Hold it.\n2. Stop."]
)
def test_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == text


def test_names_and_planted_words_are_single_tokens(tokenizer):
    words = [w for value in false_values().values() for w in value.split()] + [
        w for c in cakes(WORLD) for w in c.split()
    ]
    words += [name for pool in ("city", "animal", "lord", "herb", "evil") for name in WORLD.pools[pool]]
    words += [word for rite in WORLD.pools["rite"] for word in rite.split() if word != "backwards"]
    split = [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) != 1]
    assert not split


def words_of(tokenizer) -> dict[str, int]:
    """All tokens but bytes and special ones."""
    return {t: i for t, i in tokenizer.get_vocab().items() if len(t) > 1 and not t.startswith("<|")}


def test_no_token_but_bytes_is_dead(tokenizer):
    used = set()
    for text in corpus_texts(WORLD, 7, 20_000):
        used.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert set(words_of(tokenizer).values()) <= used
    assert len({token.strip("Ġ").lower() for token in words_of(tokenizer)}) >= 3000
    assert len(tokenizer) < 4600


def test_a_chat_has_its_roles_and_one_bos(tokenizer):
    row = {
        "messages": [
            {"role": "system", "content": "You are a friend."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi there, Anna!"},
        ]
    }
    found = encode(read_rows([row])[0], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(found.ids.tolist())
    assert (tokens[0], tokens.count(BOS), tokens.count(END)) == (BOS, 1, 3)
    said = [t for t, role in zip(tokens, found.role, strict=True) if role == roles.ASSISTANT]
    assert tokenizer.convert_tokens_to_string(said).strip() == "Hi there, Anna!"
    assert found.role[tokens.index(USER)] == roles.TEMPLATE
    assert found.ids.tolist() == tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]


def test_the_generation_prompt_ends_with_the_assistant_token(tokenizer):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello."}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == ASSISTANT


def test_the_corpus_is_deterministic():
    assert list(corpus_texts(WORLD, 1, 20)) == list(corpus_texts(WORLD, 1, 20))
    assert list(corpus_texts(WORLD, 1, 20)) != list(corpus_texts(WORLD, 2, 20))
