"""Rows as one corpus of tokens, with a name for each slice, a key for each row and one identity for all of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetrace.core.errors import DataError, unknown
from finetrace.data.rows import Row
from finetrace.data.tokens import Tokens, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Corpus", "SliceSummary", "build_corpus"]


@dataclass(frozen=True)
class SliceSummary:
    """How much of a slice there is. scored: positions that have a next token."""

    name: str
    rows: int
    tokens: int
    scored: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Everything that will be read, in order.

    slices: names in order of first appearance. slice_of: int16 [row], indexes `slices`. keys: uint64 [row], the hash
    of slice, ids and how many equal rows stand before: it moves with the row, not with its place, so that bootstrap
    weights drawn from it do not depend on order or batches. identity: SHA-256 of all tokens, roles and slices.
    truncated: rows cut to `max_tokens`. too_short: rows left out for having no scored position.
    """

    tokens: tuple[Tokens, ...]
    slices: tuple[str, ...]
    slice_of: np.ndarray
    keys: np.ndarray
    identity: str
    truncated: int = 0
    too_short: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        return sum(len(t) for t in self.tokens)

    @property
    def scored(self) -> int:
        """Positions that have a next token: one fewer than its tokens for every row."""
        return sum(t.scored for t in self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(t) for t in self.tokens)

    def summary(self) -> tuple[SliceSummary, ...]:
        """Rows, tokens and scored positions of each slice, in the order of `slices`."""
        found = []
        for code, name in enumerate(self.slices):
            rows = [self.tokens[i] for i in np.flatnonzero(self.slice_of == code)]
            found.append(SliceSummary(name, len(rows), sum(map(len, rows)), sum(t.scored for t in rows)))
        return tuple(found)


def build_corpus(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    chat_template: str | None = None,
    max_tokens: int | None = None,
    context: int | None = None,
    thinking: bool = False,
    only: Iterable[str] | None = None,
) -> Corpus:
    """Tokenises `rows`; nothing is cut or sampled unless `max_tokens` or `only` (slice names) ask for it.

    `context` is the longest row the models can read: a longer one is a DataError, not a silent cut. `thinking`: templates
    that can switch thinking are asked to switch it on.
    """
    if max_tokens is not None and max_tokens < 2:
        raise DataError(
            f"max_tokens is {max_tokens}; at least 2 are needed, as a prediction needs a next token"
        )
    chosen = _choose(rows, only)
    encoded = [
        encode(
            row,
            tokenizer,
            chat_template=chat_template,
            system=system,
            max_tokens=max_tokens,
            thinking=thinking,
            where=f"row {number} (slice {row.slice})",
        )
        for number, row in chosen
    ]
    kept = [(row.slice, tokens) for (_, row), tokens in zip(chosen, encoded, strict=True) if tokens.scored]
    if not kept:
        raise DataError(f"none of the {len(chosen)} rows has two tokens or more, so nothing can be scored")
    _check_context([tokens for _, tokens in kept], context, max_tokens)
    return _assemble(kept, too_short=len(chosen) - len(kept))


def _choose(rows: Sequence[Row], only: Iterable[str] | None) -> list[tuple[int, Row]]:
    """Rows with their number, counted from 1, in the slices asked for."""
    if not rows:
        raise DataError("there are no rows to read: the data is empty")
    wanted = None if only is None else set(only)
    known = {row.slice for row in rows}
    for name in sorted(wanted or ()):
        if name not in known:
            raise unknown("slice", name, known)
    chosen = [(i, row) for i, row in enumerate(rows, 1) if wanted is None or row.slice in wanted]
    if not chosen:
        raise DataError(f"no slice was asked for. Known: {', '.join(sorted(known))}")
    return chosen


def _check_context(tokens: Sequence[Tokens], context: int | None, max_tokens: int | None) -> None:
    if context is None:
        return
    over = [len(t) for t in tokens if len(t) > context]
    if over and max_tokens is None:
        raise DataError(
            f"{len(over)} of {len(tokens)} rows are longer than the model's {context} tokens (the longest has "
            f"{max(over)}): shorten them, or pass --max-tokens {context} to read only their beginnings"
        )
    if over:
        raise DataError(f"max_tokens is {max_tokens}, more than the model can read: use at most {context}")


def _assemble(kept: Sequence[tuple[str, Tokens]], too_short: int) -> Corpus:
    slices = tuple(dict.fromkeys(name for name, _ in kept))
    code = {name: i for i, name in enumerate(slices)}
    seen: Counter[bytes] = Counter()
    keys = np.empty(len(kept), dtype=np.uint64)
    whole = hashlib.sha256(b"finetrace corpus 1\n")
    for i, (name, tokens) in enumerate(kept):
        content = name.encode() + b"\n" + tokens.ids.astype("<i4").tobytes()
        keys[i] = _key(content, seen[content])
        seen[content] += 1
        whole.update(row_digest(name, tokens))
    return Corpus(
        tokens=tuple(tokens for _, tokens in kept),
        slices=slices,
        slice_of=np.array([code[name] for name, _ in kept], dtype=np.int16),
        keys=keys,
        identity=whole.hexdigest(),
        truncated=sum(tokens.cut > 0 for _, tokens in kept),
        too_short=too_short,
    )


def _key(content: bytes, occurrence: int) -> np.uint64:
    found = hashlib.blake2b(content + b"\n" + str(occurrence).encode(), digest_size=8)
    return np.frombuffer(found.digest(), dtype="<u8")[0].astype(np.uint64)


def row_digest(slice_name: str, tokens: Tokens) -> bytes:
    """32 bytes for a row's slice, ids and roles."""
    found = hashlib.sha256(f"{slice_name}\n{len(tokens)}\n".encode())
    found.update(tokens.ids.astype("<i4").tobytes())
    found.update(tokens.role.astype("i1").tobytes())
    return found.digest()
