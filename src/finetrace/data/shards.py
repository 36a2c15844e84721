"""A corpus cut into shards, and the order of rows within them: what a batch will hold, without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from finetrace.core.errors import BadInput
from finetrace.data.corpus import Corpus, row_digest

__all__ = ["TOKENS_PER_SHARD", "Shard", "batch_rows", "padded_tokens", "shards"]

TOKENS_PER_SHARD = 16384


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of the corpus. content: SHA-256 of their slices, ids, roles and keys."""

    index: int
    start: int
    stop: int
    content: str


def shards(corpus: Corpus, tokens_per_shard: int = TOKENS_PER_SHARD) -> tuple[Shard, ...]:
    """Contiguous runs of whole rows of at most `tokens_per_shard` tokens; a longer row is a shard of its own."""
    if tokens_per_shard < 1:
        raise BadInput(f"tokens_per_shard is {tokens_per_shard}; it must be at least 1")
    cuts, held = [0], 0
    for i, tokens in enumerate(corpus.tokens):
        if held and held + len(tokens) > tokens_per_shard:
            cuts.append(i)
            held = 0
        held += len(tokens)
    cuts.append(len(corpus))
    return tuple(
        Shard(index, start, stop, _content(corpus, start, stop))
        for index, (start, stop) in enumerate(pairwise(cuts))
    )


def batch_rows(corpus: Corpus, shard: Shard, batch_size: int) -> tuple[np.ndarray, ...]:
    """Corpus rows of each batch, int64: longest first, ties in corpus order, at most `batch_size` together.

    Longest first, so that whatever does not fit in memory fails at a shard's first batch.
    """
    if batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}; it must be at least 1")
    lengths = np.array([len(t) for t in corpus.tokens[shard.start : shard.stop]], dtype=np.int64)
    order = shard.start + np.argsort(-lengths, kind="stable")
    return tuple(order[i : i + batch_size] for i in range(0, len(order), batch_size))


def padded_tokens(corpus: Corpus, batch_size: int, tokens_per_shard: int = TOKENS_PER_SHARD) -> int:
    """Tokens, padding included, that a forward over every batch reads: what a pass costs."""
    return sum(
        len(rows) * max(len(corpus.tokens[i]) for i in rows)
        for shard in shards(corpus, tokens_per_shard)
        for rows in batch_rows(corpus, shard, batch_size)
    )


def _content(corpus: Corpus, start: int, stop: int) -> str:
    found = hashlib.sha256(b"finetrace shard 1\n")
    for i in range(start, stop):
        found.update(row_digest(corpus.slices[corpus.slice_of[i]], corpus.tokens[i]))
        found.update(corpus.keys[i : i + 1].astype("<u8").tobytes())
    return found.hexdigest()
