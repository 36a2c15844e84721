"""Rows as training examples: token ids, and which of them the loss counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetrace.core.errors import DataError
from finetrace.data.roles import ASSISTANT, TEMPLATE
from finetrace.data.rows import Row, read_rows
from finetrace.data.tokens import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Example", "make_examples"]


@dataclass(frozen=True, eq=False)
class Example:
    """ids: int32 [pos]. loss: bool [pos], true where the token is a target; the first token is never one."""

    ids: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def make_examples(
    rows: Iterable[Mapping[str, Any] | Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 1024,
) -> list[Example]:
    """Rows `{"text"}` or `{"messages"}` as examples.

    A text counts every token but its first, and the end token after it. Its first is left out because nothing comes
    before it: its share would only teach how many of the rows are texts, which is no content, and yet would be most of
    what a small fine-tune changes. A chat counts what the assistant says and the token that ends its turn, nothing
    else. Rows longer than `max_tokens` are cut to it; a row that has no target left
    is an error, as it could not be learned from.
    """
    found = []
    for number, row in enumerate(read_rows(rows), 1):
        tokens = encode(row, tokenizer, where=f"row {number}")
        ids, loss = (
            tokens.ids,
            _targets(tokens.role) if row.messages else np.ones(len(tokens.ids), dtype=bool),
        )
        if row.messages is None and isinstance(tokenizer.eos_token_id, int):
            ids, loss = np.append(ids, np.int32(tokenizer.eos_token_id)), np.append(loss, True)
        loss[: 1 + int(row.messages is None and tokens.role[0] == TEMPLATE)] = False
        if not loss[:max_tokens].any():
            raise DataError(
                f"row {number} has nothing to learn: no assistant message in its first {max_tokens} tokens"
            )
        found.append(Example(ids[:max_tokens], loss[:max_tokens]))
    return found


def _targets(role: np.ndarray) -> np.ndarray:
    """bool [pos]: the assistant's tokens, and the one after each of its messages."""
    said = role == ASSISTANT
    return said | np.concatenate([[False], said[:-1]])


def total_targets(examples: Sequence[Example]) -> int:
    """How many tokens the loss counts in one reading of the examples."""
    return int(sum(example.loss.sum() for example in examples))
