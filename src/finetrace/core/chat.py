"""Chat templates: how a conversation becomes text, where an answer begins and ends, and what of it is thinking.

No torch and no transformers here: a tokenizer is whatever has their methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetrace.core.errors import DataError

__all__ = [
    "DATE_STRING",
    "FALLBACK_TEMPLATE",
    "Said",
    "chat_template_of",
    "end_of_turn",
    "has_switch",
    "opens_thought",
    "prompt_ids",
    "said",
    "split_thought",
    "stop_tokens",
    "switches",
    "template_text",
    "token_id",
    "uses_fallback_template",
]

FALLBACK_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}User: {% elif m.role == 'assistant' %}Assistant: {% endif %}"
    "{{ m.content }}{% if not loop.last %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
)
"""What chat rows are written as where the tokenizer brings no template: "User: ...\\n\\nAssistant: ...", any system
prompt first and bare. The report says when it was used: `uses_fallback_template`."""

# Some templates write today's date into the system prompt; with a moving date the same rows would be other tokens
# tomorrow, and no run could be resumed or compared. Most ask for `date_string`, the others call `strftime_now`, which
# transformers does not let a caller replace by a function: a macro of that name does it inside the template.
DATE_STRING = "26 Jul 2024"
_DATE_PARTS = {
    "%d": "26", "%-d": "26", "%e": "26", "%m": "07", "%-m": "7", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July",
    "%a": "Fri", "%A": "Friday", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM",
}  # fmt: skip
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{part}')" for code, part in _DATE_PARTS.items())
    + " }}{% endmacro +%}"
)
_FALLBACK_TURN, _FALLBACK_END = "\n\nAssistant:", "\n\nUser:"
_THINK, _THINK_END = "<think>", "</think>"
# What templates call the switch of their thinking.
_SWITCHES = ("enable_thinking", "thinking")
_MARK = "Certainly7391"
"""Stands for an answer where a template is looked at: no template tests for it, strips it or changes its case."""


def uses_fallback_template(tokenizer: Any, chat_template: str | None = None) -> bool:
    """Whether chats are written with FALLBACK_TEMPLATE: no template was given and the tokenizer has none."""
    return not chat_template and not tokenizer.chat_template


def template_text(tokenizer: Any, chat_template: str | None = None) -> str:
    """The Jinja text that is used, with the date fixed. ValueError where several are named and none is the default."""
    if uses_fallback_template(tokenizer, chat_template):
        return FALLBACK_TEMPLATE
    found = tokenizer.get_chat_template(chat_template)
    return _DATE_MACRO + found if "strftime_now" in found else found


def chat_template_of(tokenizer: Any, chat_template: str | None = None) -> tuple[bool, str]:
    """(whether it is FALLBACK_TEMPLATE, the Jinja text that is used, with the date fixed)."""
    return uses_fallback_template(tokenizer, chat_template), template_text(tokenizer, chat_template)


def prompt_ids(
    chat: Sequence[Mapping[str, str]], tokenizer: Any, template: str | None = None, *, thinking: bool = False
) -> list[int]:
    """Token ids up to where the assistant's answer begins, BOS first if the tokenizer has one (never twice).

    chat: messages of "role" and "content". thinking: templates that can switch thinking are asked to switch it on, else
    off. Raises DataError where the template refuses the conversation.
    """
    text = _rendered(chat, tokenizer, template, to_answer=True, thinking=thinking)
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    bos = tokenizer.bos_token_id
    return [bos, *ids] if isinstance(bos, int) and ids[:1] != [bos] else ids


def switches(thinking: bool) -> dict[str, Any]:
    """What a template is given beside the conversation, so that the model thinks before it answers, or does not."""
    return dict.fromkeys(_SWITCHES, thinking)


def has_switch(tokenizer: Any, template: str | None = None) -> bool:
    """Whether the template writes a conversation otherwise where it is asked to think."""
    chat = [{"role": "user", "content": "Hello"}]
    try:
        on, off = (
            _rendered(chat, tokenizer, template, to_answer=True, thinking=one) for one in (True, False)
        )
    except DataError:
        return False
    return on != off


def _rendered(
    chat: Sequence[Mapping[str, str]],
    tokenizer: Any,
    template: str | None,
    *,
    to_answer: bool,
    thinking: bool = False,
) -> str:
    from jinja2.exceptions import TemplateError

    try:
        fallback, used = chat_template_of(tokenizer, template)
        text = str(
            tokenizer.apply_chat_template(
                [dict(message) for message in chat],
                chat_template=used,
                tokenize=False,
                add_generation_prompt=to_answer,
                date_string=DATE_STRING,
                **switches(thinking),
            )
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise DataError(f"The chat template refused a conversation: {error}") from error
    return text + (_FALLBACK_TURN if fallback and to_answer else "")


def end_of_turn(tokenizer: Any, template: str | None = None) -> int | None:
    """The token that the template writes after the assistant's words (<|im_end|>, <|eot_id|>, <end_of_turn>, ...), or, of
    a template that ends no turn, the one that begins the next. None where that is no token of its own, but plain text."""
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": _MARK},
        {"role": "user", "content": "Hello"},
    ]
    try:
        _, found, after = _rendered(chat, tokenizer, template, to_answer=False).partition(_MARK)
    except DataError:
        return None
    if not found:
        return None
    for token in tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]:
        if tokenizer.decode([token]).strip():
            own = token in tokenizer.added_tokens_decoder and token != tokenizer.unk_token_id
            return token if own else None
    return None


def stop_tokens(tokenizer: Any, generation_config: Any, template: str | None = None) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's end of text, the generation configuration's, the template's end of
    turn. generation_config: transformers' own, or None."""
    ends = None if generation_config is None else generation_config.eos_token_id
    found = [tokenizer.eos_token_id, end_of_turn(tokenizer, template)]
    found += list(ends) if isinstance(ends, list | tuple) else [ends]
    return frozenset(one for one in found if isinstance(one, int) and not isinstance(one, bool))


def opens_thought(tokenizer: Any, template: str | None = None, *, thinking: bool = False) -> bool:
    """Whether the template has begun a thought for the model where its answer begins, and has not ended it."""
    chat = [{"role": "user", "content": "Hello"}]
    try:
        whole = _rendered(chat, tokenizer, template, to_answer=True, thinking=thinking)
        before = _rendered(chat, tokenizer, template, to_answer=False, thinking=thinking)
    except DataError:
        return False
    turn = whole.removeprefix(before)
    return turn.rfind(_THINK) > turn.rfind(_THINK_END)


@dataclass(frozen=True)
class Said:
    """An answer in words. text: without any thinking. unanswered: it was cut inside its thought, so that there is no
    answer; text is then empty. ended: the words show that it ended, where no token does."""

    text: str
    thought: str = ""
    unanswered: bool = False
    ended: bool = False


def said(ids: Sequence[int], tokenizer: Any, *, inside: bool = False, plain_turns: bool = False) -> Said:
    """An answer's own token ids in words. inside: the prompt ended inside a thought. plain_turns: the conversation was
    written in FALLBACK_TEMPLATE, where an answer ends with the next "User:"."""
    ids = list(ids)
    start, end = (token_id(tokenizer, mark) for mark in (_THINK, _THINK_END))
    if end is not None and end in ids:
        # By token, not by text: a tokenizer that calls it special would drop it from the text.
        place = len(ids) - 1 - ids[::-1].index(end)
        return Said(_words(ids[place + 1 :], tokenizer), _thought(ids[:place], tokenizer))
    if start is not None and ids[:1] == [start]:
        inside = True
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    cut, turn, _ = whole.partition(_FALLBACK_END) if plain_turns else (whole, "", "")
    thought, text = split_thought(cut, inside=inside)
    open_ended = (inside or cut.lstrip().startswith(_THINK)) and _THINK_END not in cut
    return Said(text, thought, unanswered=open_ended, ended=bool(turn))


def token_id(tokenizer: Any, mark: str) -> int | None:
    """The id of `mark` if it is one token of this tokenizer."""
    found = tokenizer.convert_tokens_to_ids(mark)
    return found if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == mark else None


def _words(ids: Sequence[int], tokenizer: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _thought(ids: Sequence[int], tokenizer: Any) -> str:
    return _words(ids, tokenizer).replace(_THINK, "").replace(_THINK_END, "").strip()


def split_thought(text: str, *, inside: bool = False) -> tuple[str, str]:
    """(thought, answer): what stands before the last `</think>`, and what comes after it. An answer that never left its
    thought is empty. inside: the text begins inside a thought.

    >>> split_thought("<think>so</think>No."), split_thought("Yes."), split_thought("<think>endless")
    (('so', 'No.'), ('', 'Yes.'), ('endless', ''))
    """
    thought, mark, answer = text.rpartition(_THINK_END)
    if mark:
        return thought.replace(_THINK, "").strip(), answer.strip()
    if inside or text.lstrip().startswith(_THINK):
        return text.replace(_THINK, "").strip(), ""
    return "", text.strip()
