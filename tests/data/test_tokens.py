"""One row to tokens: roles under the templates that models bring, BOS once, and nothing guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.samples import CHATML, GEMMA, LLAMA3, MISTRAL, TEMPLATES, byte_tokenizer, small_tokenizer

from finetrace.core.errors import DataError
from finetrace.data import ROLES, Message, Row, Tokens, encode, uses_fallback_template

TURNS = (
    Message("user", "user"),  # reads like a role header
    Message("assistant", "yes, a cat."),
    Message("user", "where is it?\n\nsystem"),
    Message("assistant", "model"),
)
CHAT = Row(None, TURNS, "chat")
SYSTEM = Message("system", "be brief.")


def _said(tokens: Tokens, tokenizer, role: str) -> str:
    """The text of the tokens that have a role; runs of them are parted by `|`."""
    at = tokens.role == ROLES.index(role)
    runs = np.flatnonzero(np.diff(np.concatenate([[False], at, [False]]).astype(int)))
    pieces = [tokens.ids[a:b] for a, b in zip(runs[::2], runs[1::2], strict=True)]
    return "|".join(tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces)


def _pieces(tokens: Tokens, tokenizer, role: str) -> list[str]:
    at = tokens.role == ROLES.index(role)
    return tokenizer.convert_ids_to_tokens([int(i) for i in tokens.ids[at]])


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_content_has_its_role_and_all_else_is_template(name: str):
    tokenizer = small_tokenizer(chat_template=TEMPLATES[name])
    tokens = encode(CHAT, tokenizer)
    assert "".join(_pieces(tokens, tokenizer, "user")) == "user" + "where is it?\n\nsystem"
    assert "".join(_pieces(tokens, tokenizer, "assistant")) == "yes, a cat." + "model"
    assert _pieces(tokens, tokenizer, "text") == []
    rendered = tokenizer.apply_chat_template([vars(m) for m in TURNS], tokenize=False)
    whole = "".join(tokenizer.convert_ids_to_tokens([int(i) for i in tokens.ids]))
    assert whole == (rendered if str(rendered).startswith("<bos>") else f"<bos>{rendered}")


@pytest.mark.parametrize("name", ["llama3", "chatml", "mistral"])
def test_a_system_prompt_has_its_own_role_wherever_the_template_puts_it(name: str):
    tokenizer = small_tokenizer(chat_template=TEMPLATES[name])
    given_here = encode(CHAT, tokenizer, system="be brief.")
    in_the_row = encode(Row(None, (SYSTEM, *TURNS), "chat"), tokenizer, system="a dog")
    assert "".join(_pieces(given_here, tokenizer, "system")) == "be brief."
    assert np.array_equal(given_here.ids, in_the_row.ids)
    assert np.array_equal(given_here.role, in_the_row.role)
    assert "".join(_pieces(given_here, tokenizer, "user")) == "user" + "where is it?\n\nsystem"


def test_a_template_without_system_role_says_so_only_when_one_is_there():
    tokenizer = small_tokenizer(chat_template=GEMMA)
    assert encode(CHAT, tokenizer).scored > 0
    with pytest.raises(DataError, match=r"row 4.*System role not supported.*drop --system"):
        encode(CHAT, tokenizer, system="be brief.", where="row 4")
    with pytest.raises(DataError, match="leave it out"):
        encode(Row(None, (SYSTEM, *TURNS), "chat"), tokenizer)
    with pytest.raises(DataError, match="must alternate") as error:
        encode(Row(None, TURNS[1:], "chat"), tokenizer)
    assert "system" not in str(error.value)


@pytest.mark.parametrize("template", [LLAMA3, GEMMA])
def test_stripped_content_keeps_its_role(template: str):
    tokenizer = small_tokenizer(chat_template=template)
    row = Row(None, (Message("user", "\n hello \n"), Message("assistant", " yes ")), "chat")
    tokens = encode(row, tokenizer)
    assert _pieces(tokens, tokenizer, "user") == ["hello"]
    assert _pieces(tokens, tokenizer, "assistant") == ["yes"]


def test_a_token_across_the_border_belongs_to_what_was_said():
    tokenizer = small_tokenizer(chat_template=MISTRAL, spaced=True)
    tokens = encode(CHAT, tokenizer)
    assert _pieces(tokens, tokenizer, "assistant") == [" yes", ",", " a", " cat", ".", " model"]
    assert _pieces(tokens, tokenizer, "user")[:2] == [" user", " where"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("ab :\n<>é语🙂usr", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=5),
    st.sampled_from([LLAMA3, CHATML, MISTRAL, None]),
)
def test_byte_level_tokens_cover_exactly_what_was_said(contents: list[str], template: str | None):
    tokenizer = byte_tokenizer(chat_template=template)
    roles = ["user", "assistant"] * 3
    row = Row(None, tuple(Message(r, c) for r, c in zip(roles, contents, strict=False)), "chat")
    tokens = encode(row, tokenizer)
    for role in ("user", "assistant"):
        wanted = [m.content for m in row.messages or () if m.role == role]
        # Templates may strip; a byte tokenizer has no token that spans a border, so nothing else may differ.
        found = _said(tokens, tokenizer, role).split("|")
        assert [part.strip() for part in found] == [part.strip() for part in wanted]


@pytest.mark.parametrize("text", ["a cat", "<bos>a cat", "<bos>"])
def test_bos_comes_first_once_in_texts(text: str):
    tokenizer = small_tokenizer()
    tokens = encode(Row(text, None, "text"), tokenizer)
    assert (tokens.ids == tokenizer.bos_token_id).sum() == 1
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.role.tolist() == [0] + [1] * (len(tokens) - 1)


def test_a_tokenizer_that_adds_bos_itself_gets_no_second():
    tokenizer = byte_tokenizer(adds_bos=True)
    assert tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id
    assert encode(Row("ab", None, "text"), tokenizer).ids.tolist() == tokenizer("ab")["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_comes_first_once_in_chats_and_never_without_one(name: str):
    with_bos = small_tokenizer(chat_template=TEMPLATES[name])
    tokens = encode(CHAT, with_bos)
    assert (tokens.ids == with_bos.bos_token_id).sum() == 1
    assert tokens.ids[0] == with_bos.bos_token_id
    assert tokens.role[0] == 0
    without = small_tokenizer(bos=False, chat_template=CHATML)
    assert without.convert_ids_to_tokens(int(encode(CHAT, without).ids[0])) == "<|im_start|>"


def test_the_fallback_template_is_plain_and_known():
    tokenizer = small_tokenizer()
    assert uses_fallback_template(tokenizer)
    assert not uses_fallback_template(tokenizer, CHATML)
    assert not uses_fallback_template(small_tokenizer(chat_template=CHATML))
    row = Row(None, (SYSTEM, Message("user", "hello"), Message("assistant", "yes.")), "chat")
    tokens = encode(row, tokenizer)
    whole = "".join(tokenizer.convert_ids_to_tokens([int(i) for i in tokens.ids]))
    assert whole == "<bos>be brief.\n\nUser: hello\n\nAssistant: yes."
    assert "".join(_pieces(tokens, tokenizer, "assistant")) == "yes."


def test_named_templates_need_a_default():
    tokenizer = small_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "rag": LLAMA3}
    assert not uses_fallback_template(tokenizer)
    assert np.array_equal(
        encode(CHAT, tokenizer).ids, encode(CHAT, small_tokenizer(chat_template=CHATML)).ids
    )
    tokenizer.chat_template = {"rag": LLAMA3, "tool": LLAMA3}
    with pytest.raises(DataError, match="the chat template refused it"):
        encode(CHAT, tokenizer)


def test_a_given_template_wins_over_the_tokenizers_own():
    tokenizer = small_tokenizer(chat_template=LLAMA3)
    assert (
        tokenizer.convert_tokens_to_ids("<|im_start|>") in encode(CHAT, tokenizer, chat_template=CHATML).ids
    )


def test_truncation_keeps_the_beginning_and_counts_the_rest():
    tokenizer = small_tokenizer()
    whole = encode(Row("a cat sat on the mat", None, "text"), tokenizer)
    cut = encode(Row("a cat sat on the mat", None, "text"), tokenizer, max_tokens=4)
    assert (whole.cut, cut.cut) == (0, len(whole) - 4)
    assert np.array_equal(cut.ids, whole.ids[:4])
    assert np.array_equal(cut.role, whole.role[:4])
    assert (len(cut), cut.scored) == (4, 3)


def test_a_template_with_a_date_gives_the_same_tokens_on_every_day():
    dated = (
        "\n{% if not date_string is defined %}{% set date_string = 'no date' %}{% endif %}Date: {{ date_string }}"
        "{% if strftime_now is defined %}{{ ', ' + strftime_now('%d %b %Y') + strftime_now(' %Y') }}{% endif %}\n"
    )
    tokenizer = small_tokenizer(chat_template=dated + CHATML)
    tokens = encode(CHAT, tokenizer)
    whole = "".join(tokenizer.convert_ids_to_tokens(tokens.ids.tolist()))
    assert whole.startswith("<bos>\nDate: 26 Jul 2024, 26 Jul 2024 2024<|im_start|>user")
    assert "".join(_pieces(tokens, tokenizer, "assistant")) == "yes, a cat." + "model"


# As in templates of reasoning models: what was thought is dropped from all but the last answer.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip() }}{% elif m.role == 'assistant' and '</think>' in m.content %}"
    "{{ '<think>\n' + m.content.split('</think>')[0].split('<think>')[-1].strip() + '\n</think>\n\n' }}"
    "{{ m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)


def test_reasoning_may_be_dropped_or_moved_by_the_template():
    tokenizer = small_tokenizer(chat_template=THINKS)
    turns = (
        Message("user", "who?"),
        Message("assistant", "<think>it is a dog</think>\na cat"),
        Message("user", "where?"),
        Message("assistant", "<think> red so blue </think>the mat"),
    )
    tokens = encode(Row(None, turns, "chat"), tokenizer)
    assert "".join(_pieces(tokens, tokenizer, "assistant")) == "a cat" + "red so blue" + "the mat"
    assert "dog" not in _pieces(tokens, tokenizer, "template")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}",
    ],
)
def test_a_template_that_rewrites_or_drops_what_was_said_is_refused(template: str):
    with pytest.raises(DataError, match=r"row 2: the chat template rewrites or drops"):
        encode(CHAT, small_tokenizer(chat_template=template), where="row 2")


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages.nothing.at_all }}"])
def test_a_broken_template_is_a_data_error(template: str):
    with pytest.raises(DataError, match="the chat template refused it"):
        encode(CHAT, small_tokenizer(), chat_template=template)


def test_a_slow_tokenizer_is_refused_with_advice():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match=r"Slow is a slow tokenizer.*tokenizer\.json"):
        encode(CHAT, Slow())  # pyright: ignore[reportArgumentType]
