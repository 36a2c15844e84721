"""A method's streaming half, and the contrasts that the engine runs it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from finetrace.core.card import Needs
from finetrace.engine.journal import Journal
from finetrace.engine.step import LogitChunk, Step

PAIR, SELF = "pair", "self"


class Observer(Protocol):
    """Sees every step of one contrast. `see` comes first, then that step's chunks, if the card asked for logits.

    `merge(later)` appends what a later shard saw; `restore(state())` is the identity, to the last bit.
    """

    def see(self, step: Step) -> None: ...
    def see_logits(self, chunk: LogitChunk) -> None: ...
    def merge(self, later: Self) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: dict[str, Tensor]) -> None: ...
    def result(self) -> Any: ...


@dataclass(frozen=True)
class Contrast:
    """The base against one other side of the pair.

    label: "pair", "self", "null:<name>" or "dose:<name>". side: the Pair's name for it. scale: the factor on an
    adapter's delta (1 but for dose-matched nulls). echo: run in another batch shape, which shows the numerics' own noise.
    """

    label: str
    side: str
    scale: float = 1.0
    echo: bool = False


@dataclass(frozen=True)
class Job:
    """One method on one contrast: a fresh observer per shard, and where the shards' states are journalled."""

    method: str
    contrast: Contrast
    needs: Needs
    observer: Callable[[], Observer]
    journal: Journal
