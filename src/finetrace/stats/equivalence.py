"""Did one group of weights move more than another? One of four words, and two named hypotheses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from finetrace.core.errors import BadInput
from finetrace.stats.contrast import Pooled
from finetrace.stats.intervals import check_level
from finetrace.stats.paired import tost

GroupWord = Literal["different", "different-but-negligible", "equivalent", "inconclusive"]
DIFFERENT: GroupWord = "different"
NEGLIGIBLE: GroupWord = "different-but-negligible"
EQUIVALENT: GroupWord = "equivalent"
INCONCLUSIVE: GroupWord = "inconclusive"
GROUP_WORDS: tuple[GroupWord, ...] = (DIFFERENT, NEGLIGIBLE, EQUIVALENT, INCONCLUSIVE)

MARGIN = math.log(1.10)
"""Of a log ratio of root mean squares: 10%, fixed before anything is measured."""

HypothesisWord = Literal["supported", "consistent", "not supported", "undecided"]


@dataclass(frozen=True)
class GroupVerdict:
    """word, and the reason for "inconclusive". p_equivalence: of the two one-sided tests; None without an error."""

    word: GroupWord
    reason: str
    p_equivalence: float | None


@dataclass(frozen=True)
class Hypothesis:
    """One of seed 003's two hypotheses, as it names them. sentence: the word, spelled out."""

    name: str
    word: HypothesisWord
    sentence: str


def group_verdict(
    found: Pooled | None, margin: float = MARGIN, *, alpha: float = 0.05, p_adjusted: float | None = None
) -> GroupVerdict:
    """The word for a pooled log ratio.

    - different: the (1 - alpha) interval excludes 0, and the mean lies beyond the margin.
    - different-but-negligible: the interval excludes 0, and the (1 - 2 alpha) one lies inside the margin.
    - equivalent: the (1 - 2 alpha) interval lies inside the margin and the other does not exclude 0.
    - inconclusive: anything else, with the reason.

    p_adjusted: a p-value corrected for a family of comparisons, which then stands in for "the interval excludes 0". The
    test of equivalence needs no such correction here: every comparison that a claim of equality rests on has to pass it.
    """
    check_level(1 - alpha)
    if not margin > 0:
        raise BadInput(f"An equivalence margin is positive, not {margin}: log 1.10 is usual.")
    if found is None:
        return GroupVerdict(INCONCLUSIVE, "no data: the groups share no matrix that moved", None)
    if not found.se or found.p is None:
        return GroupVerdict(INCONCLUSIVE, "one layer of one run shows no spread to judge by", None)
    test = tost(found.value, found.se, found.df, -margin, margin, alpha=alpha)
    apart = (found.p if p_adjusted is None else p_adjusted) < alpha
    if apart and abs(found.value) > margin:
        return GroupVerdict(DIFFERENT, "", test.p)
    if test.equivalent:
        return GroupVerdict(NEGLIGIBLE if apart else EQUIVALENT, "", test.p)
    return GroupVerdict(INCONCLUSIVE, _why(found, margin, apart), test.p)


def _why(found: Pooled, margin: float, apart: bool) -> str:
    smallest = found.smallest_detectable_ratio
    size = "too few layers and seeds to say what ratio would be seen"
    if smallest is not None:
        size = f"a ratio of {smallest:.2f} would be seen with chance 0.8"
    if apart:
        return f"not 0, but whether it is beyond the margin of {math.exp(margin):.2f} stays open; {size}"
    return f"neither 0 nor the margin of {math.exp(margin):.2f} is excluded; {size}"


def fragile(
    matched: GroupVerdict, placebo: GroupVerdict, theta: float | None, theta_placebo: float | None
) -> Hypothesis:
    """H1 of seed 003, "Fragile Safety": the safety group moves more than its fully matched control *and* than the placebo."""
    name = "H1 (fragile safety)"
    sides = ((matched, theta, "matched control"), (placebo, theta_placebo, "placebo"))
    if all(v.word == DIFFERENT and (t or 0) > 0 for v, t, _ in sides):
        text = "the safety group moved more than its matched control and than the placebo group"
        return Hypothesis(name, "supported", text)
    against = [
        who
        for v, t, who in sides
        if v.word in (EQUIVALENT, NEGLIGIBLE) or (v.word == DIFFERENT and (t or 0) < 0)
    ]
    if against:
        text = f"the safety group did not move more than its {' and '.join(against)} by more than the margin"
        return Hypothesis(name, "not supported", text)
    open_ = [f"{who}: {v.reason}" for v, _, who in sides if v.word == INCONCLUSIVE]
    return Hypothesis(name, "undecided", "; ".join(open_))


def similar(matched: GroupVerdict) -> Hypothesis:
    """H2 of seed 003, "Pathway Creation": the safety group moves like its fully matched control."""
    name = "H2 (pathway creation)"
    if matched.word == EQUIVALENT:
        text = "drift equal to the matched control's within the margin is consistent with H2; it is no proof of new circuits"
        return Hypothesis(name, "consistent", text)
    if matched.word == INCONCLUSIVE:
        return Hypothesis(name, "undecided", matched.reason)
    if matched.word == NEGLIGIBLE:
        text = "the drift differs from the matched control's, by less than the margin: consistent with H2, no proof of new circuits"
        return Hypothesis(name, "consistent", text)
    return Hypothesis(name, "not supported", "the drift differs from the matched control's")
