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


@dataclass(frozen=True)
class Workers:
    """Processes of a Ray cluster that shards are mapped over; no part of the run key, as it moves no figure.

    address: None starts Ray here, "auto", "host:port" or "ray://host:port" joins one. count: None is one a GPU, else one a
    CPU core. cpus, gpus: of each. retries: how often a lost worker's shard is done again elsewhere.
    """

    address: str | None = None
    count: int | None = None
    cpus: float = 1
    gpus: float | None = None
    retries: int = 3
