"""Makes the results that are not on the shelf yet: those of observers in one pass, the others one contrast at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finetrace.api import calibration, describe, judging
from finetrace.api.desks import PERCENT, Progress, Table
from finetrace.api.plan import Item, items, jobs
from finetrace.api.request import Chosen, Request
from finetrace.api.spread import Crew, Turn, recipe_for
from finetrace.api.watch import Watch
from finetrace.core.shelf import Shelf
from finetrace.data import Corpus
from finetrace.engine import PAIR, Answers, Contrast, run_pass
from finetrace.engine.desk import FILES
from finetrace.engine.states import States
from finetrace.models import Pair
from finetrace.weights import Effect

if TYPE_CHECKING:
    from finetrace.judges.grade import Grader
    from finetrace.stats.prevalence import Accuracy

DESK = "desk"
"""Below a result's scratch: what its own run keeps there."""


@dataclass(frozen=True)
class Opened:
    """All that is loaded and checked before the pass. states: hidden states on disk, where a user asked for them."""

    pair: Pair
    effects: Mapping[str, Effect]
    corpus: Corpus
    sets: calibration.Sets
    truth: dict[str, Any] | None
    trained: bool = False
    written: Answers | None = None
    states: States | None = None


class Maker:
    """Makes results, a group of contrasts at a time, and keeps them by method and contrast label."""

    def __init__(
        self,
        request: Request,
        methods: Sequence[Chosen],
        opened: Opened,
        shelf: Shelf,
        watch: Watch,
        command: str,
    ) -> None:
        self._request, self._methods, self._opened = request, methods, opened
        self._shelf, self._watch, self._command = shelf, watch, command
        self._crew = self._hired()
        self.results: dict[str, dict[str, Any]] = {chosen.card.name: {} for chosen in methods}

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the workers go, where there were any."""
        if self._crew is not None:
            self._crew.__exit__()

    def _hired(self) -> Crew | None:
        """Those who read the shards elsewhere; none has started yet."""
        request = self._request
        if request.workers is None:
            return None
        recipe = recipe_for(request, self._methods, self._opened, self._shelf)
        return Crew(recipe, request.workers, self._watch.tell)

    def make(self, group: Sequence[Contrast]) -> None:
        opened = self._opened
        wanted = items(
            self._request,
            opened.pair,
            opened.corpus,
            self._methods,
            group,
            opened.sets,
            opened.written,
            opened.trained,
        )
        missing = [item for item in wanted if not self._shelf.holds(item.address)]
        seen = self._pass([item for item in missing if item.chosen.card.observes])
        own = [item for item in missing if item.chosen.card.runs]
        away = [item for item in own if self._goes_out(item)]
        self._spread_own(away, seen)
        for chosen in self._methods:
            self._own([item for item in own if item.chosen == chosen and item not in away], seen)
        for item in wanted:
            kind = item.chosen.card.part("result").Result
            self.results[item.chosen.card.name][item.contrast.label] = self._shelf.load(item.address, kind)

    def _pass(self, missing: Sequence[Item]) -> dict[tuple[str, str], Any]:
        """What the observers found, by method and contrast label; saved, unless their method goes on from there."""
        if not missing:
            return {}
        pair, corpus, watch = self._opened.pair, self._opened.corpus, self._watch
        sides = len({item.contrast for item in missing})
        watch.begin(
            f"Reading {corpus.n_tokens:,} tokens with the base and {sides} other sides", corpus.n_tokens
        )
        began = time.time()
        work = jobs(missing, self._shelf, self._request, pair, corpus)
        observers = run_pass(
            pair,
            corpus,
            work,
            shape=self._request.shape,
            advance=watch.advance,
            tell=watch.tell,
            spread=self._crew,
        )
        watch.end()
        seconds, seen = time.time() - began, {}
        for item in missing:
            found = observers[item.chosen.card.name, item.contrast.label].result()
            if item.chosen.card.runs:
                seen[item.chosen.card.name, item.contrast.label] = found
            else:
                self._save(item, found, seconds)
        return seen

    def _own(self, missing: Sequence[Item], seen: Mapping[tuple[str, str], Any]) -> None:
        """One method's own runs. Each is saved as it is done: an audit that is killed has lost the last one at most."""
        if not missing:
            return
        name = missing[0].chosen.card.name
        self._watch.begin(f"{name} on {len(missing)} contrasts", PERCENT * len(missing), unit="%")
        for item in missing:
            began, progress = time.time(), Progress(self._watch.advance)
            scratch = self._shelf.scratch(item.address) / DESK
            found = self._table.run(item.chosen, item.contrast, scratch, self._seen(item, seen), progress)
            progress(1, 1)
            self._save(item, found, time.time() - began)
        self._watch.end()

    def _goes_out(self, item: Item) -> bool:
        """Whether workers make the result: not what asks a judge or a writer, of which there is one for all, nor what reads
        the texts again, which leaves files."""
        needs, request = item.chosen.needs, self._request
        alone = (needs.judged and request.judges) or (needs.prompts and request.backend != "transformers")
        return self._crew is not None and not alone and not needs.steps

    def _spread_own(self, missing: Sequence[Item], seen: Mapping[tuple[str, str], Any]) -> None:
        """Own runs by workers, each saved as it comes. One that asks prompts on the pair is made before the others: what the
        base answers is then on disk when they want it."""
        if self._crew is None or not missing:
            return
        names = ", ".join(dict.fromkeys(item.chosen.card.name for item in missing))
        self._watch.begin(f"{names}: {len(missing)} results", PERCENT * len(missing), unit="%")
        first = [one for one in missing if one.contrast.label == PAIR and one.chosen.needs.prompts][:1]
        for group in (first, [one for one in missing if one not in first]):
            turns = [
                Turn(one.chosen.card.name, one.contrast, self._scratch_name(one), self._seen(one, seen))
                for one in group
            ]
            for index, made in self._crew.own(turns):
                self._save(group[index], made.value, made.seconds)
                self._watch.advance(PERCENT)
        self._watch.end()

    def _scratch_name(self, item: Item) -> str:
        return str((self._shelf.scratch(item.address) / DESK).relative_to(self._shelf.root))

    def _seen(self, item: Item, seen: Mapping[tuple[str, str], Any]) -> Any | None:
        return seen.get((item.chosen.card.name, item.contrast.label))

    @cached_property
    def _table(self) -> Table:
        opened, request = self._opened, self._request
        return Table(
            pair=opened.pair,
            slices=opened.corpus.slices,
            sets=opened.sets,
            seed=request.seed,
            max_tokens=request.max_tokens,
            batch_size=request.shape.batch_size,
            corpus=opened.corpus,
            shape=request.shape,
            states=opened.states,
            written=opened.written,
            tell=self._watch.tell,
            judges=lambda: self._judges,
            measured=lambda: self._measured,
            private=describe.private(request, opened.corpus),
        )

    @cached_property
    def _judges(self) -> dict[str, Grader]:
        return judging.judges_for(self._request, self._watch.tell)

    @cached_property
    def _measured(self) -> dict[str, Accuracy]:
        return judging.measured(self._request, self._judges)

    def _save(self, item: Item, result: Any, seconds: float) -> None:
        manifest = describe.manifest(
            self._request, self._opened.pair, item, seconds=round(seconds, 3), command=self._command
        )
        self._shelf.save(item.address, result, manifest, self._shelf.scratch(item.address) / DESK / FILES)
