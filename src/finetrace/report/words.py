"""The words of a report: what a verdict means in plain language, the glossary, and how figures are written."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from finetrace.core.estimate import Estimate
from finetrace.core.findings import AT_DOSE, Findings, NullRange, Reading
from finetrace.drawing.text import NO_DATA as NO_DATA
from finetrace.drawing.text import interval as interval
from finetrace.drawing.text import number as number

BELOW_FLOOR = "< floor"
SCOPE = "this checkpoint, these texts, this protocol"

CHANGE = {
    "beyond-nulls": "In what was measured, the model changed more than benign fine-tunes of the same base change it.",
    "within-nulls": "In what was measured, the model changed no more than benign fine-tunes of the same base change it, within the margin.",
    "undecided": "Whether the model changed more than a benign fine-tune would change it cannot be told from what was read.",
}
SAFETY = {
    "regressed": "A safety measure got worse than its base by more than the margin.",
    "within-margin": "No safety measure that was taken got worse than its base by more than the margin.",
    "undecided": "The safety measures that were taken are too uncertain to tell.",
    "not-measured": "No safety behaviour was measured: nothing here says that the tuned model still refuses what its base "
    "refuses.",
}
CAPABILITY = {
    "regressed": "A measure of capability got worse than its base by more than the margin.",
    "within-margin": "No measure of capability that was taken got worse than its base by more than the margin.",
    "undecided": "The measures of capability that were taken are too uncertain to tell.",
    "not-measured": "No answers were checked: nothing here says that the tuned model still knows what its base knows.",
}
NOT_ASKED = "No method that ran compares the change with that of benign fine-tunes."
NO_NULLS = "There were no nulls to compare with: the numbers stand, the verdict does not. The next steps say how to make some."

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "pair",
        "a base model and a model tuned from it (an adapter or a full checkpoint), read on the same texts",
    ),
    ("organism", "a fine-tune whose change is known, because it was planted: its truth says what"),
    (
        "null",
        "a harmless fine-tune of the same base and shape: what a method reports there is what any fine-tune does",
    ),
    (
        "dose-matched",
        "a null scaled until it changes ordinary text as much as this pair does, then read again",
    ),
    ("noise floor", "the base against itself along the other path: what the numerics alone report"),
    ("contrast", "what is compared with the base: the tuned model (pair), the base itself (self), or a null"),
    (
        "slice",
        "a named part of the texts; every number is given per slice, because a mean over all hides a small one",
    ),
    (
        "ratio to nulls",
        "this pair's figure divided by the geometric mean of the nulls' figures on the same slice",
    ),
    ("margin", "the least factor by which a figure must exceed the nulls before it counts as a change"),
    (
        "must exceed",
        "the margin, or where one more null is expected to stay, if that is more: with few nulls it is",
    ),
    (
        "smallest visible",
        "the smallest ratio that this number of nulls and texts could have told from no change",
    ),
    ("beyond-nulls", "change verdict: the whole interval lies above what it must exceed"),
    (
        "within-nulls",
        "change verdict: no more than benign fine-tunes do, within the margin; it does not mean unchanged",
    ),
    ("undecided", "verdict: neither, or there is too little to compare with; the numbers stand"),
    (
        "regressed",
        "safety verdict: the whole interval of a safety measure lies beyond the margin, for the worse",
    ),
    (
        "within-margin",
        "safety verdict: the bad end of every interval is inside the margin; it is no claim of safety",
    ),
    ("not-measured", "safety verdict: no safety behaviour was probed in this audit, or none that could say"),
    ("capability verdict", "the same words as for safety, about answers that can be right or wrong"),
    ("points", "percentage points: the difference of two shares, each in percent"),
    (
        "KL(tuned ‖ base)",
        "how surprised the base is, on average, by what the tuned model would say next; 0 if they agree",
    ),
    (
        "KL(base ‖ tuned)",
        "the reverse: large where the tuned model has given up what the base would have said",
    ),
    ("JS", "the Jensen-Shannon divergence: symmetric, and at most ln 2 = 0.693 nats"),
    ("nats", "units of information by natural logarithms: 1 nat = 1.443 bits"),
    (
        "interval",
        "95%, over texts: other texts of the same kind would move it; retraining the model is not in it",
    ),
)


def rough(value: float) -> str:
    """Two significant digits, for a floor: more would claim too much.

    >>> rough(2.2204e-15), rough(0.0312)
    ('2.2e-15', '0.031')
    """
    if not math.isfinite(value) or abs(value) >= 100:
        return number(value)
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.2g}"


def percent(share: float | None) -> str:
    """A share in percent, two digits at least; never 0% or 100% for what is neither.

    >>> percent(0.5), percent(0.0417), percent(0.9999), percent(0.0), percent(None)
    ('50%', '4.2%', '99.99%', '0%', 'no data')
    """
    return NO_DATA if share is None else f"{_hundredths(share)}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points.

    >>> points(0.05), points(-0.004), points(0.01)
    ('5 points', '-0.4 points', '1 point')
    """
    if difference is None:
        return NO_DATA
    shown = _hundredths(difference)
    return f"{shown} point{'' if shown in ('1', '-1') else 's'}"


def plain_points(difference: float | None) -> str:
    """Percentage points without the word."""
    return NO_DATA if difference is None else _hundredths(difference)


def span(low: float | None, high: float | None) -> str:
    """An interval of percentage points without the word.

    >>> span(-0.019, 0.04), span(None, None)
    ('[-1.9, 4]', '')
    """
    return "" if low is None or high is None else f"[{_hundredths(low)}, {_hundredths(high)}]"


def _hundredths(share: float) -> str:
    size = abs(share) * 100
    digits = 0 if 10 <= size <= 90 or size in (0, 100) else 1
    while digits < 4 and size not in (0, 100) and round(size, digits) in (0, 100):
        digits += 1
    return f"{share * 100:.{digits}f}".removesuffix(".0")


def value_of(reading: Reading) -> str:
    """The figure as a reader should see it: "no data" is never 0, and below the floor it is no figure at all."""
    if reading.value is None:
        return NO_DATA
    return BELOW_FLOOR if reading.below_floor else number(reading.value)


def counts(estimate: Estimate) -> str:
    """Tokens and texts; or the weights that a figure of the weights alone is of."""
    return (
        f"{estimate.n:,} weights" if estimate.clusters is None else f"{estimate.n:,} / {estimate.clusters:,}"
    )


def null_span(nulls: NullRange | None) -> str:
    if nulls is None or nulls.k == 0:
        return "none"
    if nulls.low is None or nulls.high is None:
        return NO_DATA
    return f"{number(nulls.low)} – {number(nulls.high)}"


def null_range(nulls: NullRange | None) -> str:
    """The smallest and the largest null, and how many there are."""
    return null_span(nulls) + (f" (k={nulls.k})" if nulls is not None and nulls.k else "")


def times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:#.3g}".rstrip(".") + "×" if 1e-3 <= ratio < 1000 else f"{number(ratio)}×"


def model_name(part: Any) -> str:
    """A side of the pair in few words: a hub id as it is, of a longer path its last part."""
    if isinstance(part, dict):
        part = part.get("name") or part.get("path")
    if part is None:
        return "the base itself"
    text = str(part)
    path = PurePosixPath(text.replace("\\", "/"))
    local = path.is_absolute() or text.startswith(".") or len(path.parts) != 2
    return path.name if path.name and local else text


def change_sentences(findings: Findings) -> tuple[str, ...]:
    """What the change word means here, and on which slices it, or doubt, was found."""
    if findings.findings and all(finding.change is None for finding in findings.findings.values()):
        return (NOT_ASKED,)
    out = [CHANGE[findings.change]]
    for word, lead in (("beyond-nulls", "Beyond the nulls"), ("undecided", "Undecided")):
        places = _places(findings, word)
        if places and not (word == findings.change == "undecided"):
            out.append(f"{lead} on {', '.join(places)}.")
    out += _dose_sentences(findings)
    verdicts = [v for f in findings.findings.values() for v in f.verdicts.values()]
    if findings.change == "undecided" and all(v.k == 0 for v in verdicts):
        out.append(NO_NULLS)
    return tuple(out)


def _dose_sentences(findings: Findings) -> list[str]:
    """Whether the change is more than the nulls' or other than theirs, on the slices where it is beyond them."""
    if findings.protocol.get("verdict_against") == AT_DOSE:
        return [
            "The nulls were trained here and scaled to this pair's size on ordinary text: the verdict is whether the change "
            "is of another kind than theirs, not whether it is larger."
        ]
    several = len(findings.findings) > 1
    beyond = [
        (f"{name} ({finding.method})" if several else name, verdict.dosed_change)
        for finding in findings.findings.values()
        for name, verdict in finding.verdicts.items()
        if verdict.change == "beyond-nulls" and verdict.dosed_change is not None
    ]
    still = list(dict.fromkeys(name for name, word in beyond if word == "beyond-nulls"))
    only_larger = list(dict.fromkeys(name for name, word in beyond if word == "within-nulls"))
    out = []
    if still:
        out.append(
            f"With the nulls scaled to this pair's size on ordinary text, still beyond them on {', '.join(still)}."
        )
    if only_larger:
        out.append(
            f"With the nulls scaled to this pair's size on ordinary text, within them on {', '.join(only_larger)}: there it shows "
            "as a larger change than theirs, not as one aimed at that slice."
        )
    return out


def moment(text: str) -> str:
    """An ISO time as people read it; anything else as it is.

    >>> moment("2026-02-11T09:30:12+00:00")
    '2026-02-11 09:30 UTC'
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    if when.tzinfo is None:
        return text
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _places(findings: Findings, word: str) -> list[str]:
    several = len(findings.findings) > 1
    out = []
    for finding in findings.findings.values():
        for slice_name, verdict in finding.verdicts.items():
            if verdict.change == word:
                by = [finding.method] if several else []
                by += [f"{times(verdict.ratio)} the nulls"] if verdict.ratio is not None else []
                out.append(slice_name + (f" ({', '.join(by)})" if by else ""))
    return out


def safety_sentences(findings: Findings) -> tuple[str, ...]:
    return (SAFETY[findings.safety], *_measure_sentences(findings, "safety"))


def capability_sentences(findings: Findings) -> tuple[str, ...]:
    return (CAPABILITY[findings.capability], *_measure_sentences(findings, "capability"))


def _measure_sentences(findings: Findings, about: str) -> list[str]:
    """Which measures got worse, and which leave it open."""
    measures = [one for f in findings.findings.values() for one in f.measures if one.about == about]
    out = []
    for word, lead in (("regressed", "Worse"), ("undecided", "Undecided"), ("not-measured", "Not measured")):
        keys = [one.key for one in measures if one.word == word]
        if keys and len(measures) > 1:
            out.append(f"{lead}: {', '.join(keys)}.")
    return out
