"""One row to token ids and roles: the one place where text becomes tokens.

The position convention, used everywhere: **position p is the prediction made at token p of token p+1**. So a text of n
tokens has n-1 scored positions (0 to n-2); the last token has no next one, and padding has none either. `role[p]` is
the role of token p itself, not of the token that is predicted there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetrace.core.chat import (
    DATE_STRING,
    FALLBACK_TEMPLATE,
    chat_template_of,
    switches,
    template_text,
    uses_fallback_template,
)
from finetrace.core.errors import DataError
from finetrace.data.roles import TEMPLATE, TEXT, role_code
from finetrace.data.rows import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DATE_STRING",
    "FALLBACK_TEMPLATE",
    "Tokens",
    "chat_template_of",
    "encode",
    "uses_fallback_template",
]

# Private-use characters: no template tests for them, strips them or changes their case.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000([0-9]+)\ue001")
_THINK_END = "</think>"


@dataclass(frozen=True, eq=False)
class Tokens:
    """One row as tokens. ids: int32 [pos]. role: int8 [pos], codes of `roles`. cut: tokens lost to truncation."""

    ids: np.ndarray
    role: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> int:
        """Positions that have a next token."""
        return max(len(self.ids) - 1, 0)


@dataclass(frozen=True)
class _Span:
    """Characters [start, stop) of the rendered chat, said by a role."""

    start: int
    stop: int
    role: int


def encode(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    thinking: bool = False,
    where: str = "this row",
) -> Tokens:
    """The tokens of one row, BOS first if the tokenizer has one (never twice), and no other special token added.

    Texts have role `text`. In chats a token that overlaps a message's content has that message's role; role headers,
    ends of turn and BOS have role `template`. `system` is put before chats that have no system message; texts ignore
    it. Only the first `max_tokens` tokens are kept. `thinking`: templates that can switch thinking are asked to switch it on.
    `where` names the row in errors.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer and gives no character offsets, without which roles are "
            "unknown: save a tokenizer.json beside the model (a fast tokenizer) and use that"
        )
    if row.messages is None:
        text, spans = row.text or "", [_Span(0, len(row.text or ""), TEXT)]
    else:
        text, spans = _render(
            _with_system(row.messages, system), tokenizer, chat_template, where, system, thinking
        )
    ids, offsets = _tokenise(text, tokenizer, where)
    role = _roles(offsets, spans)
    ids, role = _with_bos(ids, role, tokenizer)
    kept = len(ids) if max_tokens is None else min(max_tokens, len(ids))
    return Tokens(ids[:kept], role[:kept], cut=len(ids) - kept)


def _with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if system is None or any(m.role == "system" for m in messages):
        return messages
    return (Message("system", system), *messages)


def _tokenise(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[np.ndarray, np.ndarray]:
    """ids int32 [pos]; offsets int64 [pos, 2], characters [start, stop) of `text`."""
    try:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: has characters that are not valid Unicode ({error.reason})") from error
    ids = np.asarray(found["input_ids"], dtype=np.int32)
    return ids, np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)


def _roles(offsets: np.ndarray, spans: Sequence[_Span]) -> np.ndarray:
    """int8 [pos]: the role of the first span a token overlaps, `template` where it overlaps none."""
    role = np.full(len(offsets), TEMPLATE, dtype=np.int8)
    start, stop = offsets[:, 0], offsets[:, 1]
    for span in reversed(spans):
        # A token without characters (a lone word-boundary mark) belongs to where it stands.
        inside = np.where(start == stop, (start >= span.start) & (start < span.stop), stop > span.start)
        role[inside & (start < span.stop)] = span.role
    return role


def _with_bos(
    ids: np.ndarray, role: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int):
        return ids, role
    if not (len(ids) and ids[0] == bos):
        ids, role = np.insert(ids, 0, bos), np.insert(role, 0, TEMPLATE)
    role[0] = TEMPLATE
    return ids, role


def _render(
    messages: tuple[Message, ...],
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    where: str,
    system: str | None,
    thinking: bool,
) -> tuple[str, list[_Span]]:
    """The chat as the template writes it, and where each message's content stands in it."""
    from jinja2.exceptions import TemplateError

    try:
        template = template_text(tokenizer, chat_template)
        text = _apply(messages, tokenizer, template, thinking)
    except (TemplateError, ValueError, TypeError) as error:
        hint = ""
        if messages[0].role == "system":
            hint = "; it may take no system message: " + (
                "drop --system" if system is not None else "leave it out"
            )
        raise DataError(f"{where}: the chat template refused it ({error}){hint}") from error
    marked = tuple(Message(m.role, _MARK.format(i)) for i, m in enumerate(messages))
    try:
        spans = _align(text, messages, _apply(marked, tokenizer, template, thinking))
    except (TemplateError, ValueError, TypeError):  # a template that insists on some content
        spans = None
    spans = spans or _search(text, messages)
    if spans is None:
        raise DataError(
            f"{where}: the chat template rewrites or drops the content of a message, so its tokens cannot be given "
            "roles; pass another --chat-template, or give the rendered chat as 'text'"
        )
    return text, spans


def _apply(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool
) -> str:
    chat: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    text = tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, date_string=DATE_STRING, **switches(thinking)
    )
    return str(text)


def _align(text: str, messages: Sequence[Message], outline: str) -> list[_Span] | None:
    """Spans from `outline`, the same chat with marks for contents: exact even where a content reads like a header.

    None where the template treats this content otherwise than the marks.
    """
    pieces = _MARKS.split(outline)
    literals, order = pieces[0::2], [int(i) for i in pieces[1::2]]
    if sorted(order) != list(range(len(messages))) or not text.startswith(literals[0]):
        return None
    spans, at = [], len(literals[0])
    for i, after in zip(order, literals[1:], strict=True):
        stop = _content_end(text, at, messages[i].content, after)
        if stop is None:
            return None
        spans.append(_Span(at, stop, role_code(messages[i].role)))
        at = stop + len(after)
    return spans if at == len(text) else None


def _content_end(text: str, at: int, content: str, after: str) -> int | None:
    """Where `content`, as it is or stripped, ends if it starts at `at` and `after` follows it."""
    for shape in (content, content.rstrip(), content.lstrip(), content.strip()):
        if text.startswith(shape, at) and text.startswith(after, at + len(shape)):
            return at + len(shape)
    return None


def _search(text: str, messages: Sequence[Message]) -> list[_Span] | None:
    """Spans by looking for each content in turn, for templates that act on what a message says.

    Reasoning ahead of `</think>` may be moved or dropped by the template; the answer after it must be there.
    """
    spans, at = [], 0
    for message in messages:
        reasoning, _, answer = message.content.rpartition(_THINK_END)
        whole = message.content.strip()
        start = text.find(whole, at)
        if start < 0 and reasoning:
            thought = reasoning.replace("<think>", "").strip()
            found = text.find(thought, at) if thought else -1
            if found >= 0:
                spans.append(_Span(found, found + len(thought), role_code(message.role)))
                at = found + len(thought)
            whole = answer.strip()
            start = text.find(whole, at) if whole else -1
        if start < 0:
            return None
        at = start + len(whole)
        spans.append(_Span(start, at, role_code(message.role)))
    return spans
