"""Each slice beside the other slices of the same run: how large a training was, which sets harmless fine-tunes apart from one
another, cancels; what is left is where it went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.page import Cell, Table
from finetrace.methods.activation_analysis.result import Result
from finetrace.stats import ChangeVerdict, Measured, change_verdicts

_KEY = "relative_norm"
_SAID = {"beyond-nulls": "yes", "within-nulls": "no", "undecided": "undecided"}


@dataclass(frozen=True)
class Beside:
    """A slice's relative norm over the geometric mean of the other slices'. low, high: 95% over texts. nulls: the same of each
    null. verdict: against the nulls, Holm-corrected over the slices."""

    times: float
    low: float | None
    high: float | None
    nulls: tuple[float, ...]
    verdict: ChangeVerdict

    @property
    def apart(self) -> str:
        """yes: further than one more null would be expected to go."""
        return _SAID[self.verdict.word]


def beside(result: Result, nulls: Sequence[Result]) -> dict[str, Beside]:
    """By slice; nothing where fewer than two slices moved."""
    own = _shape(result)
    theirs = [shape for null in nulls if (shape := _shape(null)).keys() == own.keys()]
    groups = {name: (one, [shape[name] for shape in theirs]) for name, one in own.items()}
    # The slices' shape hardly varies from null to null: their own spread is the margin.
    verdicts = change_verdicts(groups, margin=1.0)
    return {
        name: Beside(one.value, *_interval(one), tuple(null.value for null in others), verdicts[name])
        for name, (one, others) in groups.items()
    }


def _shape(result: Result) -> dict[str, Measured]:
    known = {
        name: figure
        for name, figures in result.slices.items()
        if (figure := figures[_KEY]).value is not None and figure.value > 0
    }
    return {name: _over_others(name, known) for name in known} if len(known) > 1 else {}


def _over_others(name: str, known: Mapping[str, Estimate]) -> Measured:
    one, others = known[name], [figure for other, figure in known.items() if other != name]
    value = math.log(one.value or 0.0) - np.mean([math.log(figure.value or 0.0) for figure in others])
    drawn = [figure.replicates for figure in (one, *others) if figure.replicates is not None]
    replicates = None
    if len(drawn) == len(known):
        # A draw in which a slice has no text is no number, and is left out where the replicates are read.
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(np.stack(drawn))
            replicates = np.exp(logs[0] - logs[1:].mean(0))
    return Measured(math.exp(value), replicates, one.n, min(figure.texts for figure in known.values()))


def _interval(one: Measured) -> tuple[float | None, float | None]:
    usable = np.zeros(0) if one.replicates is None else one.replicates[np.isfinite(one.replicates)]
    if len(usable) < 2:
        return None, None
    low, high = np.quantile(usable, [0.025, 0.975])
    return min(float(low), one.value), max(float(high), one.value)


def beside_table(found: Mapping[str, Beside]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        verdict, known = one.verdict, one.nulls
        nulls = (min(known), max(known)) if known else (None, None)
        against = (verdict.ratio, verdict.bound, one.apart if len(known) else None)
        rows.append((name, one.times, one.low, one.high, *nulls, *against))
    columns = (
        "slice", "times_others", "low", "high", "nulls_low", "nulls_high", "times_nulls", "bound", "apart",
    )  # fmt: skip
    k = max((len(one.nulls) for one in found.values()), default=0)
    note = (
        "A slice's relative norm over the geometric mean of the other slices': how much was trained cancels. low, high: 95% over "
        f"texts. nulls_low, nulls_high: the same of {k} nulls; times_nulls: over their geometric mean. apart: whether times_nulls "
        "lies, with its interval, above bound, where one more null would not be expected. A change of all slices alike is not in here."
    )
    return Table("beside", "Each slice beside the others", columns, tuple(rows), note)


def standing_out(found: Mapping[str, Beside]) -> tuple[str, ...]:
    """The slices that are apart, the furthest first."""
    named = [name for name, one in found.items() if one.apart == "yes"]
    return tuple(sorted(named, key=lambda name: -(found[name].verdict.ratio or 0.0)))
