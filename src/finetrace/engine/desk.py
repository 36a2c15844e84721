"""What a method that computes on its own may touch: one side of the pair, calibration sets, scratch space, a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finetrace.core.card import Method
from finetrace.core.errors import BadInput
from finetrace.data import Corpus
from finetrace.data.examples import Example
from finetrace.data.prompts import Prompt
from finetrace.engine.answers import Answer, Answers
from finetrace.engine.observer import Contrast
from finetrace.engine.shape import Shape
from finetrace.engine.states import States
from finetrace.engine.step import Step
from finetrace.engine.stream import stream
from finetrace.engine.subject import Subject
from finetrace.models import Pair
from finetrace.stats.prevalence import Accuracy
from finetrace.weights.delta import Delta

T = TypeVar("T")
FILES = "files"

Judge = Callable[[Sequence[tuple[str, str]]], "list[str | None]"]
"""(request, answer) pairs to one verdict each, in order; None where a judge's reply could not be read."""


@dataclass(frozen=True)
class Desk:
    """One contrast, for a method's `run(config, desk, seen)`. A method never learns which contrast it is.

    pair, side: the base is `pair`'s "base", the other is `side`. scale: the factor on the side's change (1 but for nulls
    at the pair's dose). sets: calibration set -> how its examples are made; a set that was not given is absent. scratch:
    a folder of this result alone, for a journal; it need not exist, and it goes when the result is saved. remembered: what
    `once` keeps for the method's other contrasts. batch_size: texts at once. advance(done, total): so much of this
    contrast's work is done by now; the unit is the method's own. tell: a line that a user should read.

    corpus, shape: the texts and how they go through the models; None where the method's card asks for no steps. states: how
    hidden states are kept on disk; None: not at all. written: what the sides answer to the audit's prompts; None where no
    method asks for them. judges: those that the user named, by name; measured: how right each of them is on labelled
    answers, where there are such. private: slices whose texts are shown to
    no judge.
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
    corpus: Corpus | None = None
    shape: Shape = field(default_factory=Shape)
    states: States | None = None
    written: Answers | None = None
    judges: Mapping[str, Judge] = field(default_factory=dict)
    measured: Mapping[str, Accuracy] = field(default_factory=dict)
    private: tuple[str, ...] = ()
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

    @property
    def files(self) -> Path:
        """A folder for what is too large for a Result, such as a trained dictionary: made here, and moved beside the result
        when that is saved. Each file is written whole, under a name of letters, digits, '.', '-' and '_'."""
        folder = self.scratch / FILES
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def steps(self, layers: Sequence[int | float], *, shuffled: int | None = None) -> Iterator[Step]:
        """The texts, a batch at a time, with both sides' hidden states after each of `layers`; as often as it is called.

        shuffled: a seed to take shards in another order by. The states are those that an observer of the pass sees, or those
        as they are stored where a user asked for that in a coarser type.
        """
        if self.corpus is None:
            raise BadInput("This method's card asks for no steps (Needs.steps).")
        contrast = Contrast("desk", self.side, scale=self.scale, echo=self.side == "base")
        return stream(
            self.pair, self.corpus, contrast, layers, self.shape, shuffled=shuffled, states=self.states
        )

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the audit."""
        return self._answers.prompts

    @property
    def arms(self) -> tuple[str, ...]:
        """The ways in which the prompts are put; the first is the one that the headline figures are about."""
        return tuple(self._answers.arms)

    def asked(self, arm: str | None = None) -> list[list[int]]:
        """Base token ids of every prompt up to where its answer begins, in an arm (the first unless given)."""
        return self._answers.asked(arm)

    def answers(
        self, side: str | None = None, arm: str | None = None, *, echo: bool = False
    ) -> tuple[Answer, ...]:
        """Answers of a side (this contrast's unless given), prompt by prompt; written when first asked for, and kept for
        every method. echo: written in batches of another shape."""
        # Writing is most of the work of a method that asks: the bar's first half.
        return self._answers.of(
            side or self.side, arm, echo=echo, advance=lambda done, total: self.advance(done, 2 * total)
        )

    @property
    def _answers(self) -> Answers:
        if self.written is None:
            raise BadInput("No prompts were given to this audit.")
        return self.written

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

    def learnt(self, key: str, make: Callable[[], T]) -> T:
        """As `once`, but for every method of the audit: for what is read off the answers alone, such as their classes."""
        known = self._answers.learnt
        if key not in known:
            known[key] = make()
        return known[key]

    def generator(self, *salt: str) -> np.random.Generator:
        """Random numbers from the audit's seed and `salt`: the same on every contrast, in every run."""
        mixed = hashlib.sha256("\x1f".join((str(self.seed), *salt)).encode()).digest()
        return np.random.default_rng(int.from_bytes(mixed[:8], "big"))


def run_method(card: Method, config: Any, desk: Desk, seen: Any | None) -> Any:
    """A method's Result on one contrast by its own `run`. seen: its observer's Result, if it has one."""
    return card.part("run").run(config, desk, seen)
