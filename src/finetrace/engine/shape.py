"""How the pass runs. No torch here, so that the command line can name its defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Part of the run key, because it moves the last bits.

    batch_size: texts through the model at once. shard_tokens: tokens between two entries of the journal.
    """

    batch_size: int = 16
    shard_tokens: int = 16384
    compile: bool = False
