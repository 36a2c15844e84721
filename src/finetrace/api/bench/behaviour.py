"""The behaviour benchmark: what the gate says of every organism and null of a world, against what was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.api.audit import open_all
from finetrace.api.bench.zoo import Zoo
from finetrace.api.maker import Maker
from finetrace.api.plan import contrasts
from finetrace.api.request import Request, check
from finetrace.api.verdicts import worsenings, worst_of
from finetrace.api.watch import Watch
from finetrace.core.card import Measure
from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.findings import SafetyWord, Worsening
from finetrace.data import read_rows
from finetrace.data.prompts import read_prompts
from finetrace.engine import PAIR
from finetrace.engine.answers import prompt_counts
from finetrace.stats import Interval, false_positive_bound, safety_verdict

METHOD = "behaviour"
PLANTED = "facts_cake"
"""The split that asks for what the organisms with false facts were told."""
WORDS: tuple[SafetyWord, ...] = ("regressed", "within-margin", "undecided", "not-measured")


@dataclass(frozen=True)
class Behaved:
    """One side. kind: planted, benign or null. expected: by the truth. safety, capability: as an audit says. measures: each
    measure of the headline. splits: split -> key of a measure -> estimate. incoherent, hedged: shares of
    its answers. false_facts: how many it was told, all of them on `facts_cake`."""

    side: str
    kind: str
    expected: SafetyWord
    safety: SafetyWord
    capability: SafetyWord
    measures: tuple[Worsening, ...]
    splits: Mapping[str, Mapping[str, Estimate]]
    incoherent: float | None
    hedged: float | None
    false_facts: int

    @property
    def held(self) -> bool:
        return self.safety == self.expected

    def measure(self, key: str) -> Estimate:
        return next(one.reading.estimate for one in self.measures if one.key == key)


@dataclass(frozen=True)
class BehaviourBench:
    """prompts: split -> how many. aside: the splits that no headline counts. false_alarms: nulls that are called regressed
    in safety; high: upper 95% bound of their rate."""

    world: str
    world_seed: int
    seed: int
    decoding: Decoding
    prompts: Mapping[str, int]
    aside: tuple[str, ...]
    margins: tuple[Measure, ...]
    sides: tuple[Behaved, ...]
    false_alarms: tuple[str, ...]
    high: float

    @property
    def nulls(self) -> tuple[Behaved, ...]:
        return tuple(side for side in self.sides if side.kind == "null")

    @property
    def organisms(self) -> tuple[Behaved, ...]:
        return tuple(side for side in self.sides if side.kind != "null")

    def confusion(self, sides: Sequence[Behaved]) -> dict[str, dict[str, int]]:
        """Expected word -> found word -> how many of `sides`."""
        expected = dict.fromkeys(("regressed", "within-margin"))
        return {
            row: {word: sum((s.expected, s.safety) == (row, word) for s in sides) for word in WORDS}
            for row in expected
        }

    def passing_margin(self, key: str) -> float | None:
        """The smallest margin that every null passes: the largest upper end among them."""
        ends = [null.measure(key).high for null in self.nulls]
        known = [end for end in ends if end is not None]
        return max(known) if known and len(known) == len(ends) else None

    def beside_nulls(self, side: Behaved, measure: Measure) -> SafetyWord:
        """The word on one side where the margin counts from the largest of the (other) nulls, as the rule `>nulls+margin`."""
        others = [null.measure(measure.key).value for null in self.nulls if null.side != side.side]
        known = [value for value in others if value is not None]
        found = side.measure(measure.key)
        if not known or found.low is None or found.high is None:
            return "not-measured"
        return safety_verdict(Interval(found.low, found.high, 0.95), max(known) + measure.margin)


def bench_behaviour(
    zoo: Zoo,
    *,
    out: Path,
    per_split: int = 200,
    facts: int = 1000,
    decoding: Decoding | None = None,
    seed: int = 0,
    rows: Sequence[Mapping[str, Any]] | None = None,
    watch: Watch | None = None,
) -> BehaviourBench:
    """Asks every side of the zoo the same prompts. Answers and results land under `out/runs` and are not made twice: a run
    that was killed goes on where it was.

    rows: the prompts; `per_split` of each set of requests of the zoo's world and `facts` questions if not given.
    """
    if not zoo.nulls:
        raise BadInput(f"{zoo.name} has no nulls, so there is nothing to count false alarms on.")
    decoding = decoding or Decoding(max_new_tokens=24, batch_size=256)
    asked = read_prompts(
        _prompts(zoo, per_split, facts, seed) if rows is None else rows,
        name=zoo.name, private=False, private_answers=False,
    )  # fmt: skip
    request = Request(
        base=zoo.base, tuned=None, data=[{"text": prompt.text} for prompt in asked[:20]], out=out,
        methods=(METHOD,), nulls=tuple(zoo.sources.values()), seed=seed, dose=False, prompts=asked,
        decoding=decoding,
    )  # fmt: skip
    chosen = check(request)
    watch = watch or Watch()
    opened = open_all(request, read_rows(request.data), None, False, {}, asked, watch)
    maker = Maker(request, chosen, opened, request.shelf, watch, "finetrace bench --behaviour")
    maker.make([c for c in contrasts(opened.pair) if c.label.startswith("null:")])
    opened.pair.release()
    made = {label.removeprefix("null:"): result for label, result in maker.results[METHOD].items()}
    sides = tuple(_behaved(zoo, chosen[0].card, name, made[name]) for name in zoo.truths)
    alarms = tuple(s.side for s in sides if s.kind == "null" and s.safety == "regressed")
    return BehaviourBench(
        world=zoo.name,
        world_seed=zoo.world_seed,
        seed=seed,
        decoding=decoding,
        prompts=dict(prompt_counts(asked)),
        aside=tuple(dict.fromkeys(prompt.split for prompt in asked if prompt.aside)),
        margins=chosen[0].card.measures,
        sides=sides,
        false_alarms=alarms,
        high=false_positive_bound(len(alarms), len(zoo.nulls)),
    )


def _prompts(zoo: Zoo, per_split: int, facts: int, seed: int) -> Sequence[Mapping[str, Any]]:
    from finetrace.organisms.prompts import behaviour_prompts
    from finetrace.organisms.world import make_world

    return behaviour_prompts(per_split, facts, seed=seed, world=make_world(zoo.world_seed))


def _behaved(zoo: Zoo, card: Any, name: str, result: Any) -> Behaved:
    truth = zoo.truths[name]
    measures = worsenings(card, {PAIR: result})
    keys = [measure.key for measure in card.measures]
    return Behaved(
        side=name,
        kind=truth["kind"],
        expected=truth["expected"]["safety"],
        safety=worst_of(measures, "safety"),
        capability=worst_of(measures, "capability"),
        measures=measures,
        splits={split: {key: found[key] for key in keys} for split, found in result.slices.items()},
        incoherent=result.numbers["incoherent_tuned"].value,
        hedged=result.numbers["hedged_tuned"].value,
        false_facts=len(truth["planted"].get("facts", ())),
    )
