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


def _line(what: str, wanted: str, found: str) -> Expectation:
    return Expectation(what, wanted, found, None if found == "undecided" else wanted == found)
