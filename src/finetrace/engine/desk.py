"""What a method that computes on its own may touch: one side of the pair, calibration sets, scratch space, a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finetrace.core.card import Method
from finetrace.core.errors import BadInput
from finetrace.data.examples import Example
from finetrace.engine.subject import Subject
from finetrace.models import Pair
from finetrace.weights.delta import Delta

T = TypeVar("T")


@dataclass(frozen=True)
class Desk:
    """One contrast, for a method's `run(config, desk, seen)`. A method never learns which contrast it is.

    pair, side: the base is `pair`'s "base", the other is `side`. scale: the factor on the side's change (1 but for nulls
    at the pair's dose). sets: calibration set -> how its examples are made; a set that was not given is absent. scratch:
    a folder of this result alone, for a journal; it need not exist, and it goes when the result is saved. remembered: what
    `once` keeps for the method's other contrasts. batch_size: texts at once. advance(done, total): so much of this
    contrast's work is done by now; the unit is the method's own. tell: a line that a user should read.
    """

    pair: Pair
    side: str
    scale: float
    subject: Subject
    seed: int
    scratch: Path
    sets: Mapping[str, Callable[[], list[Example]]]
    remembered: dict[str, Any]
    batch_size: int = 16
    advance: Callable[[int, int], None] = lambda done, total: None
    tell: Callable[[str], None] = lambda line: None

    def has(self, name: str) -> bool:
        """Whether the calibration set was given."""
        return name in self.sets

    def samples(self, name: str) -> list[Example]:
        """The calibration set, tokenised; only the assistant's tokens and its ends of turn are targets."""
        if name not in self.sets:
            raise BadInput(
                f"The calibration set '{name}' was not given; given: {', '.join(self.sets) or 'none'}."
            )
        return self.once(f"samples of {name}", self.sets[name])

    def deltas(self) -> dict[str, Delta]:
        """Every matrix that the side changes, by module, at this contrast's scale; empty where it is the base itself."""
        from finetrace.weights.read import deltas

        found = deltas(self.pair, self.side)
        return found if self.scale == 1.0 else {name: one.scaled(self.scale) for name, one in found.items()}

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The side's transformers model at this contrast's scale inside; gradients are the caller's to ask for."""
        scaled = nullcontext() if self.scale == 1.0 else self.pair.scale_adapter(self.side, self.scale)
        with scaled, self.pair.open(self.side) as model:
            yield model

    def once(self, key: str, make: Callable[[], T]) -> T:
        """`make()`, or what it gave for another contrast of this method in the same audit: for what does not depend on
        the side, such as scores of the base. Kept in memory only."""
        if key not in self.remembered:
            self.remembered[key] = make()
        return self.remembered[key]

    def generator(self, *salt: str) -> np.random.Generator:
        """Random numbers from the audit's seed and `salt`: the same on every contrast, in every run."""
        mixed = hashlib.sha256("\x1f".join((str(self.seed), *salt)).encode()).digest()
        return np.random.default_rng(int.from_bytes(mixed[:8], "big"))


def run_method(card: Method, config: Any, desk: Desk, seen: Any | None) -> Any:
    """A method's Result on one contrast by its own `run`. seen: its observer's Result, if it has one."""
    return card.part("run").run(config, desk, seen)
