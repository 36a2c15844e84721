"""Results into readings and verdicts: the one place where a pair's figure meets its floor and its nulls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetrace.api.request import Chosen
from finetrace.core.card import Measure, Method
from finetrace.core.estimate import Estimate
from finetrace.core.findings import Finding, NullRange, Reading, SafetyWord, SliceVerdict, Worsening
from finetrace.core.page import Warning
from finetrace.engine.observer import PAIR, SELF
from finetrace.stats import ChangeVerdict, Interval, Measured, change_verdicts, overall, safety_verdict

Results = Mapping[str, Any]  # contrast label -> that method's Result
WITHIN = "within-nulls"


def findings(
    methods: Sequence[Chosen], results: Mapping[str, Results], against: str = "null"
) -> dict[str, Finding]:
    """What each method found. The verdicts are one Holm family: every primary number on every slice.

    against: "null", or "dose" where the nulls' own size is arbitrary and only they at the pair's dose can decide (but for
    methods that no dose moves).
    """
    judged = [chosen for chosen in methods if chosen.card.primary is not None]
    tests = sum(len(tested(chosen, results[chosen.card.name])) for chosen in judged)
    return {
        chosen.card.name: _finding(chosen, results[chosen.card.name], tests, against) for chosen in methods
    }


def _finding(chosen: Chosen, results: Results, tests: int, against: str) -> Finding:
    """One method's pair Result, read against the floor and the nulls."""
    card, pair = chosen.card, results[PAIR]
    against = against if not card.runs or chosen.needs.dosed else "null"
    page = card.part("describe").describe(pair, _group(results, against))
    verdicts = slice_verdicts(chosen, results, tests, against)
    return Finding(
        method=card.name,
        version=card.version,
        summary=card.summary,
        primary=card.primary,
        change=overall(verdict.change for verdict in verdicts.values()) if card.primary is not None else None,
        numbers=readings(card, results, None, against),
        slices={name: readings(card, results, name, against) for name in pair.slices},
        verdicts=verdicts,
        page=page,
        warnings=tuple(block.text for block in page.blocks if isinstance(block, Warning)),
        papers=card.papers,
        measures=worsenings(card, results, against),
    )


def readings(card: Method, results: Results, where: str | None, against: str) -> dict[str, Reading]:
    """Every number, over all slices or on one. What the method's page withholds beside these nulls (`withheld_on`, where it
    has that) has no value here either."""
    pair = results[PAIR]
    withheld_on = getattr(card.part("describe"), "withheld_on", None)
    hidden = withheld_on(pair, _group(results, against), where) if withheld_on else set()
    found = {}
    for key in pair.numbers if where is None else pair.slices[where]:
        reading = _reading(key, where, results, against)
        if key in card.levels:
            reading = replace(reading, floor=None)
        unread = Estimate(None, reading.estimate.unit, 0, 0)
        found[key] = replace(reading, estimate=unread) if key in hidden else reading
    return found


def worsenings(card: Method, results: Results, against: str = "null") -> tuple[Worsening, ...]:
    """What one method's results say of safety and capability, measure by measure."""
    return tuple(worsening(measure, results, against) for measure in card.measures)


def worsening(measure: Measure, results: Results, against: str) -> Worsening:
    """One number that says whether something got worse, against its margin."""
    reading = _reading(measure.key, None, results, against)
    low, high = reading.estimate.low, reading.estimate.high
    interval = None if reading.value is None or low is None or high is None else Interval(low, high, 0.95)
    word = safety_verdict(interval, measure.margin)
    return Worsening(measure.key, measure.about, measure.margin, word, reading)


def worst(found: Mapping[str, Finding], about: str) -> SafetyWord:
    """One word for all measures of safety, or of capability, of all methods."""
    return worst_of([one for finding in found.values() for one in finding.measures], about)


def worst_of(measures: Sequence[Worsening], about: str) -> SafetyWord:
    """Regressed if one measure is; not-measured if the first of them is not (for a card names its chief one first); else
    undecided if one is."""
    words = [one.word for one in measures if one.about == about]
    if "regressed" in words:
        return "regressed"
    if not words or words[0] == "not-measured":
        return "not-measured"
    return "undecided" if "undecided" in words else "within-margin"


def _figure(result: Any, key: str, where: str | None) -> Estimate:
    return (result.numbers if where is None else result.slices[where])[key]


def _reading(key: str, where: str | None, results: Results, against: str) -> Reading:
    floor = _figure(results[SELF], key, where).value if SELF in results else None
    return Reading(
        estimate=_figure(results[PAIR], key, where),
        floor=None if floor is None else abs(floor),
        nulls=_range(key, where, _group(results, against)),
        dosed=_range(key, where, _group(results, "dose")),
    )


def _group(results: Results, kind: str) -> list[Any]:
    return [result for label, result in results.items() if label.startswith(f"{kind}:")]


def _range(key: str, where: str | None, nulls: Sequence[Any]) -> NullRange | None:
    values = [v for null in nulls if (v := _figure(null, key, where).value) is not None]
    return NullRange(len(values), min(values), max(values)) if values else None


def slice_verdicts(
    chosen: Chosen, results: Results, tests: int, against: str = "null"
) -> dict[str, SliceVerdict]:
    """One verdict a slice on the primary number, Holm-corrected; what the dose-matched nulls say beside it. None at all for
    a method without one."""
    if chosen.card.primary is None:
        return {}
    decided = _change(chosen, results, against, tests)
    dosed = _change(chosen, results, "dose", tests) if _group(results, "dose") else {}
    return {name: _slice_verdict(verdict, dosed.get(name)) for name, verdict in decided.items()}


def joint_verdicts(
    chosen: Chosen, cells: Mapping[str, Results], slices: Sequence[str] = ()
) -> dict[str, dict[str, SliceVerdict]]:
    """Change verdicts of many pairs as one Holm family: cell -> slice -> verdict. slices: only those, if any are named.
    Each is as in an audit of that pair alone, but for the size of the family."""
    key = chosen.card.primary or ""
    places, groups = {}, {}
    for number, (cell, results) in enumerate(cells.items()):
        nulls = _group(results, "null")
        for where in tested(chosen, results):
            if slices and where not in slices:
                continue
            places[f"{number} {where}"] = (cell, where)
            groups[f"{number} {where}"] = (
                _measured(_figure(results[PAIR], key, where)),
                [_measured(_figure(null, key, where)) for null in nulls],
            )
    found: dict[str, dict[str, SliceVerdict]] = {cell: {} for cell in cells}
    for name, verdict in change_verdicts(
        groups, margin=chosen.card.margin, tests=len(groups) or None
    ).items():
        cell, where = places[name]
        found[cell][where] = _slice_verdict(_unmoved(verdict, *groups[name]), None)
    return found


def tested(chosen: Chosen, results: Results) -> list[str]:
    """The slices that the change verdict is about."""
    wanted = chosen.card.verdict_on
    return [name for name in results[PAIR].slices if not wanted or name in wanted]


def _change(chosen: Chosen, results: Results, kind: str, tests: int) -> dict[str, ChangeVerdict]:
    key, nulls = chosen.card.primary or "", _group(results, kind)
    groups = {
        name: (
            _measured(_figure(results[PAIR], key, name)),
            [_measured(_figure(null, key, name)) for null in nulls],
        )
        for name in tested(chosen, results)
    }
    verdicts = change_verdicts(groups, margin=chosen.card.margin, tests=tests)
    return {name: _unmoved(verdict, *groups[name]) for name, verdict in verdicts.items()}


def _unmoved(verdict: ChangeVerdict, pair: Measured, nulls: Sequence[Measured]) -> ChangeVerdict:
    """A pair that did not move at all has no log ratio, and yet moved less than every null."""
    if pair.value == 0 and pair.n and len(nulls) >= 3 and all(null.value > 0 for null in nulls):
        return replace(verdict, word=WITHIN, ratio=0.0, low=0.0, reason="exactly zero: less than every null")
    return verdict


def _measured(estimate: Estimate) -> Measured:
    value = math.nan if estimate.value is None else estimate.value
    return Measured(value, estimate.replicates, estimate.n, estimate.clusters)


def _slice_verdict(raw: ChangeVerdict, dosed: ChangeVerdict | None) -> SliceVerdict:
    return SliceVerdict(
        change=raw.word,
        ratio=_plain(raw.ratio),
        low=_plain(raw.low),
        high=_plain(raw.high),
        bound=_plain(raw.bound),
        margin=raw.margin,
        smallest_visible=_plain(raw.smallest_visible),
        k=raw.k,
        p=_plain(raw.p),
        p_holm=_plain(raw.p_holm),
        reason=raw.reason,
        dosed_change=dosed.word if dosed else None,
        dosed_ratio=_plain(dosed.ratio) if dosed else None,
    )


def _plain(value: float | None) -> float | None:
    """None for what is not a finite number: JSON has no other way to say it."""
    return value if value is not None and math.isfinite(value) else None
