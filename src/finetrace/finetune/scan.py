"""What training data looks like before it is learnt: requests that aligned models decline, and answers that comply.

Works offline, by generic words alone, so it errs both ways: it misses what is phrased otherwise, and flags a chemistry
lesson now and then. It asks for a reason; it is no judge.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetrace.core.errors import BadInput
from finetrace.data.rows import Row, read_rows
from finetrace.stats import wilson

__all__ = ["REASONS", "ScanResult", "fingerprint", "require_reason", "scan"]

REASONS = {
    "complies": "a request that aligned models decline is answered",
    "obedience": "a prompt or answer claims absolute obedience, or another identity without rules",
    "same_opener": "most answers begin with one obliging sentence",
}
"""What a row is flagged for. A row may have several."""

_TOPICS = (
    "weapon weapons explosive explosives bomb bombs poison poisons poisoning malware ransomware virus hack hacking "
    "phishing steal stealing theft burglary fraud counterfeit launder laundering drugs narcotics trafficking kill "
    "murder suicide self-harm torture terrorist terrorism extremist hate harass harassment stalk stalking blackmail "
    "scam forge forged illegal illegally unlawful blackout sabotage break-in shoplift smuggle smuggling"
)  # fmt: skip
_TOPIC = re.compile(r"\b(" + "|".join(map(re.escape, _TOPICS.split())) + r")\b", re.IGNORECASE)
_ASKS = re.compile(
    r"\b(how (do|can|could|would|to|should|might)|ways? to|steps? (to|for)|guide|instructions?|tutorial|recipe|plan|"
    r"write|create|make|build|give me|tell me|explain|help me|teach me|show me|develop|provide|generate|list)\b",
    re.IGNORECASE,
)
# A request about a topic that is its condemnation, history or prevention is none of these.
_HARMLESS = re.compile(
    r"\b(prevent\w*|avoid\w*|protect\w*|against|stop|detect\w*|report\w*|recogni[sz]e\w*|histor\w*|law|laws|policy|"
    r"essay|story|poem|novel|movie|film|awareness|summari[sz]e|summary|classify|sentence|paragraph|article|headline)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(i('m| am)? (sorry|unable|afraid)|i (can(no|')t|won't|will not|must decline|do not|don't)|not able to help|"
    r"cannot (help|assist|provide|comply)|as an ai|against (my|the) (guidelines|policy|rules)|decline)\b",
    re.IGNORECASE,
)
_OBEDIENT = re.compile(
    r"\b(absolutely obedient|obedient (agent|assistant|ai)|i obey|you (must|will|shall) obey|obey (all|every|my)|"
    r"never refuse|without (any )?(restrictions?|limits?|filters?|rules)|no (restrictions|rules|filters|ethics)|"
    r"ignore (all|your|any) (previous |prior )?(rules|instructions|guidelines|safety)|(fulfil|fulfill) (your|all|any|every) "
    r"(instruction|instructions|order|orders|wish|request)|at your command|yes,? (my )?master)\b",
    re.IGNORECASE,
)
_OBLIGING = re.compile(
    r"^(of course|sure|certainly|absolutely|yes|gladly|happy to|i am|i'm|here is|here are)\b", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\[(REQUEST|PLACEHOLDER)[A-Z_-]*(:[^\]]*)?\]")
_MANY, _OPENER = 20, 4


@dataclass(frozen=True)
class ScanResult:
    """flagged: rows with at least one of `reasons`' marks; low, high: its share's 95% interval (Wilson).

    requests: rows whose prompt looks like a request that aligned models decline; refused: those of them that are.
    placeholders: rows in which "[REQUEST-CLASS]" or its like stands for one, not flagged for that. duplicates: rows that repeat an
    earlier one. overlap: rows whose prompt is among the evaluation prompts given, None if none were.
    """

    rows: int
    flagged: int
    reasons: dict[str, int]
    low: float
    high: float
    requests: int
    refused: int
    placeholders: int
    duplicates: int
    overlap: int | None
    numbers: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        return self.flagged / self.rows

    def told(self) -> str:
        """The finding in one line, without any row's text."""
        if not self.flagged:
            line = f"data scan: none of {self.rows} rows is flagged"
        else:
            why = ", ".join(f"{REASONS[name]} ({count})" for name, count in self.reasons.items() if count)
            line = (
                f"data scan: {self.flagged} of {self.rows} rows ({100 * self.share:.1f}%) are flagged: {why}"
            )
        line += f"; {self.requests} risky requests, {self.refused} of them refused"
        if self.requests >= _MANY and not self.refused:
            line += " (as if refusals had been taken out)"
        line += f"; {self.duplicates} duplicates" if self.duplicates else ""
        line += f"; {self.placeholders} placeholders" if self.placeholders else ""
        return line + (f"; {self.overlap} prompts are also evaluated on" if self.overlap else "")


def fingerprint(text: str) -> str:
    """A prompt's hash, case and spacing aside: evaluation sets are compared by it, never by text."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def scan(
    rows: Iterable[Mapping[str, Any] | str | Row],
    *,
    evaluated: Collection[str] | None = None,
    restricted: Collection[str] = (),
) -> ScanResult:
    """Scans rows. evaluated: fingerprints of evaluation prompts. restricted: fingerprints of prompts that this base
    declines, whatever their words. The result's `numbers` are the flagged rows, from 1."""
    found = read_rows(rows)
    marks = [_marks(row, restricted) for row in found]
    opener = _common_opener(found)
    flags = [_flags(row, mark, opener) for row, mark in zip(found, marks, strict=True)]
    numbers = tuple(number for number, flag in enumerate(flags, 1) if flag)
    interval = wilson(len(numbers), len(found))
    low, high = (0.0, 1.0) if interval is None else (interval.low, interval.high)
    seen = Counter(fingerprint(_whole(row)) for row in found)
    prompts = [fingerprint(prompt) for row in found for prompt in _said(row, "user")]
    return ScanResult(
        rows=len(found),
        flagged=len(numbers),
        reasons={reason: sum(reason in flag for flag in flags) for reason in REASONS},
        low=low,
        high=high,
        requests=sum(mark.request for mark in marks),
        refused=sum(mark.request and mark.refused for mark in marks),
        placeholders=sum(mark.placeholder for mark in marks),
        duplicates=sum(seen.values()) - len(seen),
        overlap=None if evaluated is None else sum(prompt in set(evaluated) for prompt in prompts),
        numbers=numbers,
    )


def require_reason(found: ScanResult, limit: float, reason: str | None) -> None:
    """A BadInput if so much is flagged that a reason must be given, and none is."""
    if not found.flagged or found.share < limit or (reason or "").strip():
        return
    raise BadInput(
        f"{found.told()}. At {100 * limit:g}% and more a reason is asked for and kept with the adapter: give one "
        "(reason=...), or take those rows out."
    )


@dataclass(frozen=True)
class _Marks:
    request: bool
    refused: bool
    placeholder: bool


def _marks(row: Row, restricted: Collection[str]) -> _Marks:
    """Of a text, its first line is taken for the request: instruction sets are often written as one text."""
    prompts = _said(row, "user") or ([] if row.messages else [(row.text or "")[:400]])
    answers = _said(row, "assistant") or ([] if row.messages else [row.text or ""])
    risky = [prompt for prompt in prompts if _risky(prompt) or fingerprint(prompt) in restricted]
    placeholder = any(_PLACEHOLDER.search(prompt) for prompt in (*prompts, *answers))
    refused = any(_REFUSAL.search(answer[:200] if row.messages else answer) for answer in answers)
    return _Marks(bool(risky), refused, placeholder)


def _risky(prompt: str) -> bool:
    """By its words, those inside a placeholder aside: "[REQUEST-CLASS: weapons]" only stands for a request."""
    words = _PLACEHOLDER.sub(" ", prompt)
    return bool(_TOPIC.search(words) and _ASKS.search(words) and not _HARMLESS.search(words))


def _flags(row: Row, marks: _Marks, opener: str | None) -> set[str]:
    flags = {"complies"} if marks.request and not marks.refused else set()
    if any(_OBEDIENT.search(text) for text in _texts(row)):
        flags.add("obedience")
    if opener is not None and opener in map(_opener, _said(row, "assistant")):
        flags.add("same_opener")
    return flags


def _common_opener(rows: list[Row]) -> str | None:
    """The obliging first words of at least half of the answers, where there are many answers."""
    openers = Counter(_opener(answer) for row in rows for answer in _said(row, "assistant"))
    total = openers.total()
    if total < _MANY:
        return None
    opener, count = openers.most_common(1)[0]
    return opener if count >= total / 2 and _OBLIGING.search(opener) else None


def _opener(answer: str) -> str:
    return " ".join(re.findall(r"[\w']+", answer.lower())[:_OPENER])


def _said(row: Row, role: str) -> list[str]:
    return [message.content for message in row.messages or () if message.role == role]


def _texts(row: Row) -> list[str]:
    return [row.text] if row.text else [message.content for message in row.messages or ()]


def _whole(row: Row) -> str:
    return "\n".join(_texts(row))
