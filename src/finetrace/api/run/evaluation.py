"""What a run found against what is known of its organism.

Always, offline: expectations where there are any (the tiny world's manifest; for a control, no change), the truth in words
beside each method's readings, and a crude check of words in common. With `diffing.evaluation.agent.enabled=true` a model
reads the methods' pages once, without tools and without a word to either model, and says what the fine-tune was for;
another grades that. It is a one-shot reading and no investigation.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from finetrace.api.expect import expectations
from finetrace.api.names import is_bundled, resolve
from finetrace.api.request import PRIVATE
from finetrace.api.run.overlap import CRUDE, Overlap, overlap, top_tokens
from finetrace.api.run.spec import base_dir
from finetrace.api.watch import Watch
from finetrace.config import catalogue
from finetrace.config.tree import RunConfig
from finetrace.core.errors import ConfigErrors
from finetrace.core.files import write_json
from finetrace.core.findings import Expectation, Finding, Findings, NullRange
from finetrace.core.runkey import digest
from finetrace.report import redact
from finetrace.report.plain import plain_text

if TYPE_CHECKING:
    from finetrace.judges.cost import Spent
    from finetrace.judges.described import Section
    from finetrace.judges.speak import Speaker

__all__ = [
    "FILE",
    "Account",
    "Accounts",
    "Graded",
    "Read",
    "estimate",
    "evaluate",
    "model_of",
    "problems",
    "save",
]

FILE: Final = "evaluation.json"
VARIABLE: Final = "INSPECT_EVAL_MODEL"
KEY: Final = "diffing.evaluation.agent.model"
ONE_SHOT: Final = (
    "A one-shot reading of the methods' pages by a model: it had no tools, asked neither side anything, and was not told "
    "the organism's name. Texts of restricted slices were withheld from it."
)
_VERSION = 1
_STAGES = ("full", "evaluation")
_CONTROLS = 2
_LOCAL = "local:"
_IDENTIFIER = re.compile(r"[_/-]")
_SHORTEST_NAME = 4


@dataclass(frozen=True)
class Read:
    """What one method says in few figures. value, low, high, unit, n: its primary figure; None where it has none. tokens:
    what it puts first, without those that are withheld. words: how these fit the truth; None where nothing was planted."""

    method: str
    change: str | None
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
class Account:
    """What a model took the fine-tune to be for. score: 1 to 5 against the truth; None unscored. others: the same account
    against the truths of other organisms."""

    run: int
    text: str | None
    score: int | None
    others: Mapping[str, int | None]


@dataclass(frozen=True)
class Accounts:
    """Independent accounts: each with the methods in another order and another seed. score: the mean over n scored ones,
    low and high the least and the most; others: the mean over the controls, of n_others grades. Costs are in tokens."""

    model: str
    grader: str
    accounts: tuple[Account, ...]
    score: float | None
    low: int | None
    high: int | None
    n: int
    others: float | None
    n_others: int
    spent: Spent
    note: str = ONE_SHOT


@dataclass(frozen=True)
class Graded:
    """A run beside the truth of its organism. held, missed, unmeasured: of `expected`."""

    organism: str
    model: str
    variant: str
    control: bool
    truth: str
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
        return (*found, *_told(self.accounts))


def _told(accounts: Accounts | None) -> tuple[str, ...]:
    if accounts is None:
        return ()
    if accounts.score is None:
        return (f"{accounts.model} read the pages, and none of its accounts could be scored.",)
    beside = (
        ""
        if accounts.others is None
        else f"; against other truths {accounts.others:.1f} (n={accounts.n_others})"
    )
    return (
        f"{accounts.model} read the pages once, without tools: its account scores {accounts.score:.1f} of 5 "
        f"({accounts.low} to {accounts.high}, n={accounts.n}){beside}.",
    )


def problems(config: RunConfig) -> list[str]:
    """What keeps the reading by a model from being made, seen before anything loads; nothing if it is not asked for."""
    agent = config.diffing.evaluation.agent
    if not agent.enabled or config.pipeline.mode not in _STAGES:
        return []
    from finetrace.api.judging import served_problems

    found = []
    if (model := model_of(config)) is None:
        found.append(
            f"diffing.evaluation.agent is enabled and no model is named: give {KEY}=provider/name (or local:FOLDER), or set "
            f"{VARIABLE}."
        )
    for one in dict.fromkeys(filter(None, (model, agent.grader))):
        found += served_problems(one, role="agent")
    if not _truth(config):
        found.append(
            f"The organism {config.organism.name} says nothing of what was planted, so no account can be graded: write its "
            "description_long, or leave out diffing.evaluation.agent.enabled."
        )
    return found


def model_of(config: RunConfig) -> str | None:
    """Who reads the pages: as configured, else as the environment says."""
    return config.diffing.evaluation.agent.model or os.environ.get(VARIABLE) or None


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
        truth=_truth(config),
        expected=_expected(config, findings),
        methods=tuple(_read(config, one, shown.findings[name]) for name, one in findings.findings.items()),
    )
    if config.diffing.evaluation.agent.enabled:
        graded = replace(graded, accounts=_accounts(config, findings, watch, outputs))
    for sentence in graded.sentences():
        watch.tell(sentence)
    return graded


def save(graded: Graded, folder: Path) -> Path:
    """Writes evaluation.json beside the report."""
    path = folder / FILE
    said = {"format": "finetrace-evaluation", "version": _VERSION} | asdict(graded)
    said |= {"held": graded.held, "missed": graded.missed, "unmeasured": graded.unmeasured, "words": CRUDE}
    write_json(path, _plain(said))
    return path


def estimate(config: RunConfig) -> dict[str, Spent]:
    """What the reading would take at most once each, by model, for a dry run: tokens guessed, nothing asked."""
    from finetrace.judges.cost import Spent
    from finetrace.judges.described import REPLY

    agent, model = config.diffing.evaluation.agent, model_of(config)
    if problems(config) or not agent.enabled or model is None or config.pipeline.mode not in _STAGES:
        return {}
    page, grade = 3000 * len(config.diffing.methods), 1000
    asked = {model: Spent(agent.runs, 0, agent.runs * page, agent.runs * REPLY, estimated=True)}
    grades = agent.runs * (1 + _CONTROLS)
    grader = agent.grader or model
    before = asked.get(grader, Spent())
    return asked | {grader: before + Spent(grades, 0, grades * grade, grades * 60, estimated=True)}


def _truth(config: RunConfig) -> str:
    return " ".join(config.organism.description_long.split())


def _manifest(config: RunConfig) -> Mapping[str, Any] | None:
    """The tiny world's own truth of what was run."""
    source = config.variant.source
    if source is None or not is_bundled(source):
        return None
    from finetrace.organisms import bundled

    name = source.partition("/")[2]
    return bundled.truth(name) if name else None


def _expected(config: RunConfig, findings: Findings) -> tuple[Expectation, ...]:
    if (manifest := _manifest(config)) is not None:
        return expectations(manifest, findings.findings, findings.safety)
    return _unchanged(findings) if config.organism.control else ()


def _unchanged(findings: Findings) -> tuple[Expectation, ...]:
    """Of a control: no figure above the floor of the numerics, or none beyond the nulls; and no safety lost."""
    lines = [_quiet(name, one) for name, one in findings.findings.items() if one.primary in one.numbers]
    open_ = findings.safety in ("not-measured", "undecided")
    held = None if open_ else findings.safety == "within-margin"
    return (*lines, Expectation("safety", "within-margin", findings.safety, held))


def _quiet(name: str, finding: Finding) -> Expectation:
    reading = finding.numbers[str(finding.primary)]
    if reading.value is None:
        return Expectation(f"change by {name}", "none", "not measured", None)
    if finding.change == "beyond-nulls":
        return Expectation(f"change by {name}", "none", "beyond-nulls", False)
    if reading.value == 0 or reading.below_floor:
        return Expectation(f"change by {name}", "none", "none above the noise floor", True)
    if finding.change == "within-nulls":
        return Expectation(f"change by {name}", "none", "within-nulls", True)
    return Expectation(f"change by {name}", "none", "above the noise floor, undecided", None)


def _read(config: RunConfig, finding: Finding, shown: Finding) -> Read:
    reading = finding.numbers.get(finding.primary or "")
    tokens = top_tokens(finding)
    one = None if reading is None else reading.estimate
    return Read(
        method=finding.method,
        change=finding.change,
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
    manifest = _manifest(config)
    nothing = config.organism.control or (manifest is not None and manifest["kind"] != "planted")
    if nothing or not tokens or not _truth(config):
        return None
    found = overlap(tokens, config.organism.name, _truths(config))
    return replace(found, matched=()) if withheld else found


def _truths(config: RunConfig) -> dict[str, str]:
    """What was planted in every organism of the catalogue, this run's own among them; controls have nothing."""
    found = {one.name: one.description_long for one in catalogue.organisms() if not one.control}
    return found | {config.organism.name: config.organism.description_long}


def _accounts(
    config: RunConfig, findings: Findings, watch: Watch, outputs: Callable[..., Any] | None
) -> Accounts:
    from finetrace.judges.cache import Replies
    from finetrace.judges.described import ACCOUNT
    from finetrace.judges.grade import Grader

    agent, model = config.diffing.evaluation.agent, str(model_of(config))
    replies = Replies(base_dir(config) / "runs" / ".judges")
    reader = _speaker(model, outputs)
    same = agent.grader in (None, model)
    grader = Grader(
        ACCOUNT,
        reader if same else _speaker(str(agent.grader), outputs),
        seed=config.seed,
        replies=replies,
        tell=watch.tell,
    )
    sections = _sections(config, findings)
    others = _others(config)
    texts, spent = _asked(reader, sections, config.seed, agent.runs, replies)
    pairs = [(truth, text) for text in texts if text for truth in (_truth(config), *others.values())]
    scores = {pair: grade.verdict for pair, grade in zip(pairs, grader.grade(pairs), strict=True)}

    def score(truth: str, text: str | None) -> int | None:
        verdict = scores.get((truth, text or ""))
        return None if verdict is None else int(verdict.word)

    made = tuple(
        Account(
            run, text, score(_truth(config), text), {name: score(one, text) for name, one in others.items()}
        )
        for run, text in enumerate(texts)
    )
    own = [one.score for one in made if one.score is not None]
    theirs = [value for one in made for value in one.others.values() if value is not None]
    return Accounts(
        model=model,
        grader=agent.grader or model,
        accounts=made,
        score=fmean(own) if own else None,
        low=min(own, default=None),
        high=max(own, default=None),
        n=len(own),
        others=fmean(theirs) if theirs else None,
        n_others=len(theirs),
        spent=spent + grader.spent,
    )


def _asked(
    reader: Speaker, sections: Sequence[Section], seed: int, runs: int, replies: Any
) -> tuple[list[str | None], Spent]:
    """One account a run, in which the methods come in another order; an unreadable reply is asked for once more."""
    from finetrace.judges.cost import Spent
    from finetrace.judges.described import REPLY, ask_account, read_account

    texts: list[str | None] = []
    spent = Spent()
    for run in range(runs):
        turned = _turned(sections, seed, run)
        text: str | None = None
        for again in range(2):
            ask = ask_account(turned, again, reader.controls)
            key = replies.key(reader.identity, ask, REPLY, seed + run)
            reply = replies.get(key)
            if reply is None:
                (reply,) = reader.say([ask], max_tokens=REPLY, seed=seed + run)
                if reply is not None:
                    replies.put(key, reply)
                    spent += Spent(1, 0, reply.tokens_in, reply.tokens_out)
            else:
                spent += Spent(kept=1)
            text = read_account(reply.text, turned, again) if reply is not None and reply.finished else None
            if text is not None:
                break
        texts.append(text)
    return texts, spent


def _turned(sections: Sequence[Section], seed: int, run: int) -> list[Section]:
    """The sections in the order of the run: the first as they are, later ones shuffled."""
    return list(sections) if run == 0 else random.Random(f"{seed} {run}").sample(sections, len(sections))


def _sections(config: RunConfig, findings: Findings) -> list[Section]:
    """Each method's page as text, without restricted texts and without any name of what was run."""
    slices = {name for one in findings.findings.values() for name in (*one.slices, *one.verdicts)}
    private = {name for name in slices if name.startswith(PRIVATE)}
    if is_bundled(config.model.model_id) and config.data.id is None:
        private = set()  # the tiny world restricts nothing but nonsense
    hidden = tuple(sorted({*findings.redacted, *private}))
    shown = redact(replace(findings, redacted=hidden))
    names = _names(config)
    plain = {name for name in names if not _IDENTIFIER.search(name)}
    prose, whole = _without(plain), _without(names - plain)
    return [(f"method {name}", whole(plain_text(one, prose=prose))) for name, one in shown.findings.items()]


def _names(config: RunConfig) -> set[str]:
    """What would give the organism away: its name, and every part of the fine-tune's id."""
    source = config.variant.source or ""
    found = {config.organism.name, source, *source.split("/")}
    return {name for name in found if len(name) >= _SHORTEST_NAME}


def _without(names: set[str]) -> Callable[[str], str]:
    if not names:
        return lambda text: text
    longest = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])(?:{longest})(?![\w-])", re.IGNORECASE)
    return lambda text: pattern.sub("(the fine-tune)", text)


def _others(config: RunConfig) -> dict[str, str]:
    """Truths of two other organisms, the same ones for every run of this one: what an account scores by chance."""
    truths = _truths(config)
    kin = overlap(("x",), config.organism.name, truths).kin
    left = sorted(
        set(truths) - {config.organism.name, *kin}, key=lambda name: digest([config.organism.name, name])
    )
    return {name: " ".join(truths[name].split()) for name in left[:_CONTROLS]}


def _speaker(model: str, outputs: Callable[..., Any] | None) -> Speaker:
    if model.startswith(_LOCAL):
        from finetrace.judges.local import Local

        return Local(resolve(model.removeprefix(_LOCAL)))
    from finetrace.judges.served import Served

    return Served(model, outputs=outputs)


def _plain(value: Any) -> Any:
    """As JSON holds it: what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
