"""Corpora: slices, keys, identity, and what is never cut or dropped in silence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.data.samples import LLAMA3, small_tokenizer

from finetrace.core.errors import BadInput, DataError
from finetrace.data import Corpus, Message, Row, SliceSummary, build_corpus

TOKENIZER = small_tokenizer(chat_template=LLAMA3)
CHAT = Row(None, (Message("user", "hello"), Message("assistant", "yes")), "chat")
ROWS = [
    Row("a cat sat", None, "text"),
    CHAT,
    Row("a dog", None, "own"),
    Row("a cat sat", None, "text"),
    Row("the mat is red", None, "text"),
]


def _key_of(corpus: Corpus) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    found: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for code, tokens, key in zip(corpus.slice_of, corpus.tokens, corpus.keys, strict=True):
        found.setdefault((corpus.slices[code], tuple(tokens.ids.tolist())), []).append(int(key))
    return found


def test_slices_come_in_order_of_appearance_with_their_sizes():
    corpus = build_corpus(ROWS, TOKENIZER)
    assert corpus.slices == ("text", "chat", "own")
    assert corpus.slice_of.tolist() == [0, 1, 2, 0, 0]
    assert corpus.slice_of.dtype == np.int16
    assert corpus.summary()[0] == SliceSummary("text", rows=3, tokens=6 + 6 + 8, scored=5 + 5 + 7)
    assert sum(part.tokens for part in corpus.summary()) == corpus.n_tokens
    assert sum(part.scored for part in corpus.summary()) == corpus.scored == corpus.n_tokens - len(corpus)
    assert corpus.longest == max(len(tokens) for tokens in corpus.tokens)


def test_keys_differ_and_move_with_their_rows():
    corpus = build_corpus(ROWS, TOKENIZER)
    assert corpus.keys.dtype == np.uint64
    assert len(set(corpus.keys.tolist())) == len(ROWS)
    turned = build_corpus(ROWS[::-1], TOKENIZER)
    assert _key_of(turned) == _key_of(corpus)
    moved = build_corpus([dataclasses.replace(ROWS[0], slice="own")], TOKENIZER)
    assert moved.keys[0] not in corpus.keys


def test_the_keys_are_the_same_in_every_process_and_release():
    """Journals and shipped results are read by later processes: Python's own salted hash would not do."""
    assert build_corpus(ROWS, TOKENIZER).keys.tolist() == [int(key) for key in KEYS]


def test_the_identity_knows_text_slice_order_and_roles():
    whole = build_corpus(ROWS, TOKENIZER).identity
    assert build_corpus(list(ROWS), small_tokenizer(chat_template=LLAMA3)).identity == whole
    assert len(whole) == 64
    as_text = Row(
        str(TOKENIZER.apply_chat_template([vars(m) for m in CHAT.messages or ()], tokenize=False)),
        None,
        "chat",
    )
    assert (
        build_corpus([as_text], TOKENIZER).tokens[0].ids.tolist()
        == build_corpus([CHAT], TOKENIZER).tokens[0].ids.tolist()
    )
    others = [
        ROWS[:-1],
        ROWS[::-1],
        [*ROWS[:-1], Row("the mat is blue", None, "text")],
        [*ROWS[:-1], dataclasses.replace(ROWS[-1], slice="own")],
        [ROWS[0], as_text, *ROWS[2:]],
    ]
    found = [build_corpus(rows, TOKENIZER).identity for rows in others]
    assert len({whole, *found}) == len(others) + 1
    assert build_corpus(ROWS, TOKENIZER, system="be brief.").identity != whole


def test_rows_without_a_next_token_are_left_out_and_counted():
    corpus = build_corpus([Row("a", None, "text"), ROWS[0]], small_tokenizer(bos=False))
    assert (len(corpus), corpus.too_short) == (1, 1)
    with pytest.raises(DataError, match="none of the 2 rows has two tokens"):
        build_corpus([Row("a", None, "text")] * 2, small_tokenizer(bos=False))


def test_rows_beyond_the_context_are_an_error_unless_truncation_is_asked_for():
    with pytest.raises(
        DataError, match=r"2 of 5 rows are longer than the model's 7 .*has 15.*--max-tokens 7"
    ):
        build_corpus(ROWS, TOKENIZER, context=7)
    corpus = build_corpus(ROWS, TOKENIZER, context=7, max_tokens=7)
    assert (corpus.longest, corpus.truncated) == (7, 2)
    assert build_corpus(ROWS, TOKENIZER, context=15).truncated == 0
    with pytest.raises(DataError, match="more than the model can read: use at most 7"):
        build_corpus(ROWS, TOKENIZER, context=7, max_tokens=9)
    with pytest.raises(DataError, match="at least 2"):
        build_corpus(ROWS, TOKENIZER, max_tokens=1)


def test_only_the_slices_asked_for():
    corpus = build_corpus(ROWS, TOKENIZER, only=["own", "chat"])
    assert corpus.slices == ("chat", "own")
    with pytest.raises(BadInput, match=r"There is no slice 'tex'\. Did you mean 'text'"):
        build_corpus(ROWS, TOKENIZER, only=["tex"])
    with pytest.raises(DataError, match="no slice was asked for"):
        build_corpus(ROWS, TOKENIZER, only=[])
    with pytest.raises(DataError, match="no rows"):
        build_corpus([], TOKENIZER)


def test_an_error_in_a_row_names_it():
    with pytest.raises(DataError, match=r"row 2 \(slice chat\): the chat template"):
        build_corpus(ROWS, TOKENIZER, chat_template="{{ raise_exception('no') }}")


KEYS = (
    13126881477104608878,
    13337852397439099766,
    1155833190426321302,
    7277368466724014030,
    10263355826474451759,
)
