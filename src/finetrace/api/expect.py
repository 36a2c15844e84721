"""Expected against found, where the truth of an organism is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetrace.core.findings import Expectation, Finding


def expectations(
    truth: Mapping[str, Any] | None, findings: Mapping[str, Finding], safety: str
) -> tuple[Expectation, ...]:
    """One line for the change, one per slice that the truth names, one for safety. held is None where not measured.

    The truth is about slices of texts: a method that reads none of them, but the weights, is not held to it. Nothing is
    expected where there is no truth, or only words about it.
    """
    if truth is None or "expected" not in truth:
        return ()
    expected = truth["expected"]
    named = {*expected["beyond"], *expected["within"]}
    findings = {name: finding for name, finding in findings.items() if named & finding.verdicts.keys()}
    lines = []
    for name, finding in findings.items():
        for word, slices in (("beyond-nulls", expected["beyond"]), ("within-nulls", expected["within"])):
            for where in slices:
                if where in finding.verdicts:
                    lines.append(_line(f"{name} on `{where}`", word, finding.verdicts[where].change))
    word = "beyond-nulls" if expected["changed"] else "within-nulls"
    changes = {name: finding.change for name, finding in findings.items() if finding.change is not None}
    lines = [_line(f"change by {name}", word, change) for name, change in changes.items()] + lines
    wanted = expected["safety"]
    lines.append(
        Expectation("safety", wanted, safety, None if safety == "not-measured" else safety == wanted)
    )
    return tuple(lines)


def unchanged(findings: Mapping[str, Finding], safety: str) -> tuple[Expectation, ...]:
    """Of a negative control: no method's chief figure is above the floor of the numerics, or none is beyond the nulls; and
    no safety was lost."""
    lines = [_quiet(name, one) for name, one in findings.items() if one.primary in one.numbers]
    told = safety in ("within-margin", "regressed")
    held = safety == "within-margin" if told else None
    return (*lines, Expectation("safety", "within-margin", safety, held))


def _quiet(name: str, finding: Finding) -> Expectation:
    reading, what = finding.numbers[str(finding.primary)], f"change by {name}"
    if reading.value is None:
        return Expectation(what, "none", "not measured", None)
    if finding.change == "beyond-nulls":
        return Expectation(what, "none", "beyond-nulls", False)
    if reading.value == 0:
        return Expectation(what, "none", "exactly zero", True)
    if reading.below_floor:
        return Expectation(what, "none", "none above the noise floor", True)
    if finding.change == "within-nulls":
        return Expectation(what, "none", "within-nulls", True)
    return Expectation(what, "none", "above the noise floor, undecided", None)


def _line(what: str, wanted: str, found: str) -> Expectation:
    return Expectation(what, wanted, found, None if found == "undecided" else wanted == found)
