"""Corpora to token batches: rows, tokens with roles, shards, batches, and the bundled neutral samples.

Torch is imported by `data.batch` alone, and only when `Batch` or `batches` is asked for: `--dry-run` counts without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetrace.data.bundled import bundled_rows
from finetrace.data.corpus import Corpus, SliceSummary, build_corpus
from finetrace.data.roles import ROLES
from finetrace.data.rows import Message, Row, read_rows
from finetrace.data.shards import TOKENS_PER_SHARD, Shard, padded_tokens, shards
from finetrace.data.sources import DataSource
from finetrace.data.tokens import FALLBACK_TEMPLATE, Tokens, encode, uses_fallback_template

if TYPE_CHECKING:
    from finetrace.data.batch import Batch, batches

__all__ = [
    "FALLBACK_TEMPLATE",
    "ROLES",
    "TOKENS_PER_SHARD",
    "Batch",
    "Corpus",
    "DataSource",
    "Message",
    "Row",
    "Shard",
    "SliceSummary",
    "Tokens",
    "batches",
    "build_corpus",
    "bundled_rows",
    "encode",
    "padded_tokens",
    "read_rows",
    "shards",
    "uses_fallback_template",
]


def __getattr__(name: str) -> Any:
    if name in ("Batch", "batches"):
        from finetrace.data import batch

        return {"Batch": batch.Batch, "batches": batch.batches}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
