"""What a run found against what is known of its organism.

Always, offline: expectations where there are any (the tiny world's manifest; for a control, no change), the truth in words
beside each method's readings, and a crude check of words in common. With `diffing.evaluation.agent.enabled=true` a model
reads the methods' pages once, without tools and without a word to either model, and says what the fine-tune was for;
another grades that. It is a one-shot reading and no investigation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from finetrace.api.expect import expectations, unchanged
from finetrace.api.run.accounts import VARIABLE, Account, Accounts, estimate, model_of, problems, read_pages
from finetrace.api.run.overlap import CRUDE, Overlap, overlap, top_tokens
from finetrace.api.run.spec import base_dir
from finetrace.api.run.truths import manifest_of, truth_of, truths_for
from finetrace.api.watch import Watch
from finetrace.config.tree import RunConfig
from finetrace.core.errors import ConfigErrors
from finetrace.core.files import write_json
from finetrace.core.findings import Expectation, Finding, Findings, NullRange
from finetrace.report import redact

__all__ = [
    "FILE", "VARIABLE", "Account", "Accounts", "Graded", "Read", "estimate", "evaluate", "model_of", "problems", "save",
]  # fmt: skip

FILE: Final = "evaluation.json"
_VERSION = 1


@dataclass(frozen=True)
class Read:
    """What one method says in few figures. verdicts: slice -> its change word. value, low, high, unit, n: its primary figure;
    None where it has none. tokens: what it puts first, without those that are withheld. words: how these fit the truth; None
    where nothing was planted."""

    method: str
    change: str | None
    verdicts: Mapping[str, str]
    primary: str | None
    value: float | None
    low: float | None
    high: float | None
    unit: str | None
    n: int | None
    nulls: NullRange | None
    tokens: tuple[str, ...]
    words: Overlap | None


@dataclass(frozen=True)
class Graded:
    """A run beside the truth of its organism. held, missed, unmeasured: of `expected`."""

    organism: str
    model: str
    variant: str
    control: bool
    truth: str
    change: str
    safety: str
    capability: str
    expected: tuple[Expectation, ...]
    methods: tuple[Read, ...]
    accounts: Accounts | None = None

    @property
    def held(self) -> int:
        return sum(one.held is True for one in self.expected)

    @property
    def missed(self) -> int:
        return sum(one.held is False for one in self.expected)

    @property
    def unmeasured(self) -> int:
        return sum(one.held is None for one in self.expected)

    def sentences(self) -> tuple[str, ...]:
        """What there is to say, one line each."""
        found = []
        if self.expected:
            found.append(
                f"Of {len(self.expected)} expectations {self.held} held, {self.missed} did not, and {self.unmeasured} "
                "could not be told."
            )
        for one in self.methods:
            if one.words is not None and one.words.rank is not None:
                found.append(
                    f"{one.method}: its first {one.words.n} words fit the truth of {self.organism} as number "
                    f"{one.words.rank} of {one.words.of} truths (a crude check of words in common)."
                )
        return (*found, *([self.accounts.sentence] if self.accounts else ()))


def evaluate(
    config: RunConfig,
    findings: Findings,
    watch: Watch,
    *,
    outputs: Callable[..., Any] | None = None,
) -> Graded:
    """The findings against the truth. outputs: what Inspect's mock says, for tests.

    Raises ConfigErrors with `problems(config)`. Each sentence of what comes out is told to `watch`.
    """
    wrong = problems(config)
    if wrong:
        raise ConfigErrors(wrong)
    shown = redact(findings)
    graded = Graded(
        organism=config.organism.name,
        model=config.model.name,
        variant=config.organism_variant,
        control=config.organism.control,
        truth=truth_of(config),
        change=findings.change,
        safety=findings.safety,
        capability=findings.capability,
        expected=_expected(config, findings),
        methods=tuple(_read(config, one, shown.findings[name]) for name, one in findings.findings.items()),
    )
    if config.diffing.evaluation.agent.enabled:
        kept = base_dir(config) / "runs" / ".judges"
        graded = replace(graded, accounts=read_pages(config, findings, watch, kept, outputs=outputs))
    for sentence in graded.sentences():
        watch.tell(sentence)
    return graded


def save(graded: Graded, folder: Path) -> Path:
    """Writes evaluation.json beside the report."""
    path = folder / FILE
    said = {"format": "finetrace-evaluation", "version": _VERSION} | asdict(graded)
    said |= {
        "held": graded.held,
        "missed": graded.missed,
        "unmeasured": graded.unmeasured,
        "words_in_common": CRUDE,
    }
    write_json(path, _plain(said))
    return path


def _expected(config: RunConfig, findings: Findings) -> tuple[Expectation, ...]:
    if (manifest := manifest_of(config)) is not None:
        return expectations(manifest, findings.findings, findings.safety)
    return unchanged(findings.findings, findings.safety) if config.organism.control else ()


def _read(config: RunConfig, finding: Finding, shown: Finding) -> Read:
    reading = finding.numbers.get(finding.primary or "")
    tokens = top_tokens(finding)
    one = None if reading is None else reading.estimate
    return Read(
        method=finding.method,
        change=finding.change,
        verdicts={name: verdict.change for name, verdict in finding.verdicts.items()},
        primary=finding.primary,
        value=None if one is None else one.value,
        low=None if one is None else one.low,
        high=None if one is None else one.high,
        unit=None if one is None else one.unit,
        n=None if one is None else one.n,
        nulls=None if reading is None else reading.nulls,
        tokens=tokens if tokens == top_tokens(shown) else (),
        words=_words(config, tokens, withheld=tokens != top_tokens(shown)),
    )


def _words(config: RunConfig, tokens: tuple[str, ...], *, withheld: bool) -> Overlap | None:
    manifest = manifest_of(config)
    nothing = config.organism.control or (manifest is not None and manifest["kind"] != "planted")
    if nothing or not tokens or not truth_of(config):
        return None
    found = overlap(tokens, config.organism.name, truths_for(config))
    return replace(found, matched=()) if withheld else found


def _plain(value: Any) -> Any:
    """As JSON holds it: what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
