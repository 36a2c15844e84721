"""The groups, their controls, and how reliable they are: all from scores of the base, none of it from a fine-tune."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.methods.neuron_drift import SETS, Config
from finetrace.methods.neuron_drift.analysis import (
    MATCHED,
    PLACEBO,
    PLACEBO_ONLY,
    PLACEBO_TOP,
    RANDOM,
    SAFETY_ONLY,
    SAFETY_TOP,
    UTILITY_TOP,
    Contrast,
)
from finetrace.methods.neuron_drift.result import Reliability
from finetrace.stats import noise_ceiling
from finetrace.weights.controls import Matched, fully_matched, magnitude_matched, random_like
from finetrace.weights.groups import Group, difference, jaccard, joined, top
from finetrace.weights.scores import Half, Scores

REPORTED = (SAFETY_ONLY, SAFETY_TOP, UTILITY_TOP, PLACEBO_ONLY, PLACEBO_TOP, RANDOM)
CHOSEN = REPORTED[:-1]
MAGNITUDE, UTILITY = "magnitude", "utility"
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Picked:
    """What the scores of some matrices give: groups by name, the same from each half of the samples, column norms of the
    safety set, and how many samples there were."""

    groups: dict[str, Group]
    halves: tuple[dict[str, Group], dict[str, Group]]
    columns: dict[str, Tensor]
    shapes: dict[str, tuple[int, int]]
    samples: int


@dataclass(frozen=True, eq=False)
class Grouped:
    """groups: all that is to be tracked, reported ones and the sides of every comparison. matched: (group, kind) -> the
    matching, pair by pair. overlap: Jaccard index of safety and utility top k."""

    groups: dict[str, Group]
    contrasts: tuple[Contrast, ...]
    matched: dict[tuple[str, str], Matched]
    reliability: tuple[Reliability, ...]
    overlap: Estimate
    shapes: dict[str, tuple[int, int]]

    @property
    def reported(self) -> tuple[str, ...]:
        return REPORTED

    @property
    def ceilings(self) -> dict[str, float]:
        return {one.group: one.ceiling for one in self.reliability}

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Reported group -> matrix -> single weights."""
        return {name: self.groups[name].weights(self.shapes) for name in REPORTED}


def picked(scores: Mapping[str, Scores], config: Config) -> Picked:
    """The groups that these scores ("safety", "utility", "placebo") give, of all their matrices."""
    halves = (_chosen(scores, config, 0), _chosen(scores, config, 1))
    return Picked(
        _chosen(scores, config, None),
        halves,
        scores["safety"].columns(),
        dict(scores["safety"].shapes),
        min(scores[name].n for name in SETS),
    )


def together(parts: Iterable[Picked]) -> Picked:
    """Parts that were scored apart, of other matrices each, as one."""
    held = tuple(parts)

    def one(groups: Iterable[dict[str, Group]]) -> dict[str, Group]:
        tables = tuple(groups)
        return {name: joined(table[name] for table in tables) for name in CHOSEN}

    return Picked(
        one(part.groups for part in held),
        (one(part.halves[0] for part in held), one(part.halves[1] for part in held)),
        {module: norms for part in held for module, norms in part.columns.items()},
        {module: shape for part in held for module, shape in part.shapes.items()},
        held[0].samples,
    )


def _chosen(scores: Mapping[str, Scores], config: Config, half: Half | None) -> dict[str, Group]:
    safety, utility, placebo = (scores[name].of(config.score, half) for name in SETS)
    per, unit = config.per, config.unit
    return {
        SAFETY_ONLY: difference(safety, utility, config.p, config.q, name=SAFETY_ONLY, per=per, unit=unit),
        SAFETY_TOP: top(safety, config.top_k, name=SAFETY_TOP, per=per, unit=unit),
        UTILITY_TOP: top(utility, config.top_k, name=UTILITY_TOP, per=per, unit=unit),
        PLACEBO_ONLY: difference(placebo, utility, config.p, config.q, name=PLACEBO_ONLY, per=per, unit=unit),
        PLACEBO_TOP: top(placebo, config.top_k, name=PLACEBO_TOP, per=per, unit=unit),
    }


def grouped(found: Picked, weights: Mapping[str, Tensor], config: Config) -> Grouped:
    """All groups and controls. weights: module -> the base's weight [out, in]; changed by nothing here."""
    groups = {name: found.groups[name] for name in CHOSEN}
    groups[RANDOM] = random_like(groups[SAFETY_TOP], found.shapes, config.seed)
    made = _Made(groups, [], {})
    for name in (SAFETY_ONLY, SAFETY_TOP, PLACEBO_ONLY):
        made.match(name, MATCHED, _fully(groups[name], found, weights, config))
    for name, placebo in ((SAFETY_ONLY, PLACEBO_ONLY), (SAFETY_TOP, PLACEBO_TOP)):
        made.against(name, PLACEBO, placebo)
    if config.unit == "entries":
        close = magnitude_matched(groups[SAFETY_ONLY], weights, config.seed)
        made.match(SAFETY_ONLY, MAGNITUDE, close)
    for name in (SAFETY_ONLY, SAFETY_TOP):
        made.against(name, RANDOM, RANDOM)
        made.against(name, UTILITY, UTILITY_TOP)
    return Grouped(
        groups=made.groups,
        contrasts=tuple(made.contrasts),
        matched=made.matched,
        reliability=reliability(found),
        overlap=_overlap(found),
        shapes=found.shapes,
    )


def _fully(group: Group, found: Picked, weights: Mapping[str, Tensor], config: Config) -> Matched:
    """The closest control that the unit allows: whole rows have no partner in their own row."""
    if config.unit == "rows":
        return magnitude_matched(group, weights, config.seed)
    return fully_matched(group, weights, found.columns, config.seed)


@dataclass(frozen=True, eq=False)
class _Made:
    """What is being put together: every comparison's sides become groups of their own, as `group/kind/treated`."""

    groups: dict[str, Group]
    contrasts: list[Contrast]
    matched: dict[tuple[str, str], Matched]

    def match(self, name: str, kind: str, found: Matched) -> None:
        self.matched[name, kind] = found
        # A gap that cannot be computed (too few pairs) is left out: no data is not a gap of 0.
        balance = {what: float(gap) for what, gap in found.balance.items() if math.isfinite(gap)}
        self._add(name, kind, found.treated, found.control, found.rate, balance)

    def against(self, name: str, kind: str, other: str) -> None:
        """Against another chosen group, each without what both have: shared weights would make any two alike."""
        first, second = self.groups[name], self.groups[other]
        self._add(name, kind, apart(first, second), apart(second, first), None, {})

    def _add(
        self,
        name: str,
        kind: str,
        treated: Group,
        control: Group,
        rate: float | None,
        balance: dict[str, float],
    ) -> None:
        sides = (f"{name}/{kind}/treated", f"{name}/{kind}/control")
        for side, group in zip(sides, (treated, control), strict=True):
            self.groups[side] = replace(group, name=side)
        self.contrasts.append(Contrast(name, kind, *sides, rate, balance))


def reliability(found: Picked) -> tuple[Reliability, ...]:
    """Of every chosen group, by the two halves of its samples."""
    rows = []
    for name in CHOSEN:
        split = jaccard(found.halves[0][name], found.halves[1][name])
        share = _share(found.groups[name], found.shapes)
        if split is not None and 0 < share < 1:
            ceiling = noise_ceiling(split, share)
            rows.append(Reliability(name, found.samples, split, share / (2 - share), ceiling))
    return tuple(rows)


def _share(group: Group, shapes: Shapes) -> float:
    """The group's places as a share of all."""
    every = sum(rows * (columns if group.unit == "entries" else 1) for rows, columns in shapes.values())
    return len(group) / every if every else 0.0


def _overlap(found: Picked) -> Estimate:
    shared = jaccard(found.groups[SAFETY_TOP], found.groups[UTILITY_TOP])
    return Estimate(shared, "Jaccard index", len(found.groups[SAFETY_TOP]) if shared is not None else 0, None)


def apart(first: Group, second: Group) -> Group:
    """The first group without what the second has too."""
    places = {
        module: ids[~torch.isin(ids, second.of(module), assume_unique=True)]
        for module, ids in first.places.items()
    }
    return Group(first.name, first.unit, places)
