"""Corpora to token batches: rows, tokens with roles, shards, batches, and the bundled neutral samples.

Torch is imported by `data.batches` alone; take `Batch` and `batches` from there.
"""

from __future__ import annotations

from finetrace.data.bundled import bundled_rows
from finetrace.data.corpus import Corpus, SliceSummary, build_corpus
from finetrace.data.roles import ROLES
from finetrace.data.rows import Message, Row, read_rows
from finetrace.data.shards import TOKENS_PER_SHARD, Shard, padded_tokens, shards
from finetrace.data.tokens import FALLBACK_TEMPLATE, Tokens, encode, uses_fallback_template

__all__ = [
    "FALLBACK_TEMPLATE",
    "ROLES",
    "TOKENS_PER_SHARD",
    "Corpus",
    "Message",
    "Row",
    "Shard",
    "SliceSummary",
    "Tokens",
    "build_corpus",
    "bundled_rows",
    "encode",
    "padded_tokens",
    "read_rows",
    "shards",
    "uses_fallback_template",
]
