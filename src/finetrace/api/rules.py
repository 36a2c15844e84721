"""`--fail-on` rules: `kl_mean@restricted>0.5`, and the exit code that they give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetrace.core.errors import BadInput
from finetrace.core.findings import Findings, Reading

PASSED, BROKEN, UNDECIDED = "passed", "broken", "undecided"
_RULE = re.compile(r"^(?:(\w+)\.)?(\w+)(?:@([\w-]+))?\s*(>|<)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$")


@dataclass(frozen=True)
class Rule:
    """A build fails when the number is beyond `margin` on the side of `sign`."""

    text: str
    method: str | None
    key: str
    slice: str | None
    sign: str
    margin: float


@dataclass(frozen=True)
class Outcome:
    rule: Rule
    state: str
    why: str


def parse_rule(text: str) -> Rule:
    match = _RULE.match(text.strip())
    if not match:
        raise BadInput(
            f"--fail-on '{text}' is not a rule: write number>margin, such as kl_mean@restricted>0.5."
        )
    method, key, where, sign, margin = match.groups()
    return Rule(text.strip(), method, key, where, sign, float(margin))


def judge(rules: Sequence[Rule], findings: Findings) -> tuple[Outcome, ...]:
    """Passed: the interval's bad end is inside the margin. Broken: the whole interval is beyond it. Else undecided."""
    return tuple(_judge(rule, findings) for rule in rules)


def exit_code(outcomes: Sequence[Outcome], *, allow_undecided: bool) -> int:
    """0: all passed; 3: one broke; 4: one is undecided or was not measured."""
    states = {outcome.state for outcome in outcomes}
    if BROKEN in states:
        return 3
    return 4 if UNDECIDED in states and not allow_undecided else 0


def _judge(rule: Rule, findings: Findings) -> Outcome:
    reading = _find(rule, findings)
    if reading is None or reading.value is None:
        return Outcome(rule, UNDECIDED, f"{rule.key} was not measured")
    low, high = reading.estimate.low, reading.estimate.high
    if low is None or high is None:
        return Outcome(rule, UNDECIDED, f"{rule.key} = {reading.value:.4g} has no interval: too few texts")
    text = f"{rule.key} = {reading.value:.4g} [{low:.4g}, {high:.4g}]"
    bad, good = (high, low) if rule.sign == ">" else (-low, -high)
    margin = rule.margin if rule.sign == ">" else -rule.margin
    if good > margin:
        return Outcome(rule, BROKEN, f"{text} lies wholly beyond {rule.margin:g}")
    if bad <= margin:
        return Outcome(rule, PASSED, f"{text} stays within {rule.margin:g}")
    return Outcome(rule, UNDECIDED, f"{text} straddles {rule.margin:g}")


def _find(rule: Rule, findings: Findings) -> Reading | None:
    for name, finding in findings.findings.items():
        if rule.method in (None, name):
            numbers = finding.slices.get(rule.slice, {}) if rule.slice else finding.numbers
            if rule.key in numbers:
                return numbers[rule.key]
    return None
