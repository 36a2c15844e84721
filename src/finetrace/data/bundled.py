"""The neutral samples that ship with the package, for models and users that bring no data."""

from __future__ import annotations

from pathlib import Path

from finetrace.data.rows import Row, read_rows

__all__ = ["NEUTRAL", "bundled_rows"]

NEUTRAL = Path(__file__).parent / "assets" / "neutral.jsonl"


def bundled_rows() -> list[Row]:
    """A few hundred short harmless rows of our own: slices `text` and `chat`, without system
    messages (some chat templates take none)."""
    return read_rows(NEUTRAL)
