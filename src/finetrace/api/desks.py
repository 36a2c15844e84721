"""The desk that a method's own run gets: the same in the audit's process and in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.api import calibration
from finetrace.api.calibration import Sets
from finetrace.api.judging import asked_by
from finetrace.api.request import Chosen
from finetrace.data import Corpus
from finetrace.engine import PAIR, Answers, Contrast, Desk, Shape, make_subject, run_method
from finetrace.engine.states import States
from finetrace.models import Pair

if TYPE_CHECKING:
    from finetrace.judges.grade import Grader
    from finetrace.stats.prevalence import Accuracy

PERCENT = 100


@dataclass(frozen=True)
class Table:
    """What all desks of an audit share. slices: of the texts, for methods that saw them. remembered: method -> what it
    keeps between contrasts. corpus, shape: for methods that read the texts again; states: how those of them are stored. judges,
    measured: made when a method that is judged first sits down. private: slices that no judge is shown."""

    pair: Pair
    slices: tuple[str, ...]
    sets: Sets
    seed: int
    max_tokens: int | None
    batch_size: int
    written: Answers | None
    tell: Callable[[str], None]
    judges: Callable[[], Mapping[str, Grader]] = dict
    measured: Callable[[], Mapping[str, Accuracy]] = dict
    remembered: dict[str, dict[str, Any]] = field(default_factory=dict)
    corpus: Corpus | None = None
    shape: Shape = field(default_factory=Shape)
    states: States | None = None
    private: tuple[str, ...] = ()

    def run(
        self,
        chosen: Chosen,
        contrast: Contrast,
        scratch: Path,
        seen: Any | None,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Any:
        """The method's Result on a contrast. seen: its observer's Result, if it has one."""
        return run_method(chosen.card, chosen.config, self._desk(chosen, contrast, scratch, advance), seen)

    def _desk(
        self, chosen: Chosen, contrast: Contrast, scratch: Path, advance: Callable[[int, int], None]
    ) -> Desk:
        pair, card, needs = self.pair, chosen.card, chosen.needs
        if contrast.label != PAIR:
            needs = replace(needs, labels=0)
        sets = calibration.used(needs, self.sets)
        return Desk(
            pair=pair,
            side=contrast.side,
            scale=contrast.scale,
            subject=make_subject(
                pair, self.slices if card.observes or needs.steps else (), contrast.side, self.seed
            ),
            seed=self.seed,
            scratch=scratch,
            sets=calibration.makers(sets, pair.tokenizer, self.max_tokens),
            remembered=self.remembered.setdefault(card.name, {}),
            batch_size=self.batch_size,
            corpus=self.corpus if needs.steps else None,
            shape=self.shape,
            states=self.states,
            written=self.written if needs.prompts else None,
            judges=asked_by(needs, self.judges()) if needs.judged or needs.labels else {},
            measured=self.measured() if needs.judged else {},
            private=self.private,
            advance=advance,
            tell=self.tell,
        )


class Progress:
    """`Desk.advance` into whole percents of a watch; never backwards, never past a hundred."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._shown = advance, 0

    def __call__(self, done: int, total: int) -> None:
        now = min(PERCENT, PERCENT * done // max(1, total))
        if now > self._shown:
            self._advance(now - self._shown)
            self._shown = now
