"""A model reads the methods' pages, once and without tools, and says what the fine-tune was for; a grader scores that.

It is a one-shot reading and no investigation: nothing is asked of either side. What it reads is fenced, as texts of models
are hostile data; it is told no name of what was run, and no restricted text.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from finetrace.api.names import is_bundled, resolve
from finetrace.api.request import PRIVATE
from finetrace.api.run.overlap import overlap
from finetrace.api.run.truths import truth_of, truths_for
from finetrace.api.watch import Watch
from finetrace.config.tree import RunConfig
from finetrace.core.findings import Findings
from finetrace.core.runkey import digest
from finetrace.report import redact
from finetrace.report.plain import plain_text

if TYPE_CHECKING:
    from finetrace.judges.cache import Replies
    from finetrace.judges.cost import Spent
    from finetrace.judges.described import Section
    from finetrace.judges.speak import Speaker

__all__ = ["ONE_SHOT", "VARIABLE", "Account", "Accounts", "estimate", "model_of", "problems", "read_pages"]

VARIABLE: Final = "INSPECT_EVAL_MODEL"
KEY: Final = "diffing.evaluation.agent.model"
ONE_SHOT: Final = (
    "A one-shot reading of the methods' pages by a model: it had no tools, asked neither side anything, and was not told "
    "the organism's name. Texts of restricted slices were withheld from it."
)
_STAGES = ("full", "evaluation")
_CONTROLS = 2
_LOCAL = "local:"
_IDENTIFIER = re.compile(r"[_/-]")
_SHORTEST_NAME = 4


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

    @property
    def sentence(self) -> str:
        """What there is to say, on one line."""
        if self.score is None:
            return f"{self.model} read the pages, and none of its accounts could be scored."
        beside = (
            "" if self.others is None else f"; against other truths {self.others:.1f} (n={self.n_others})"
        )
        return (
            f"{self.model} read the pages once, without tools: its account scores {self.score:.1f} of 5 "
            f"({self.low} to {self.high}, n={self.n}){beside}."
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
    if not truth_of(config):
        found.append(
            f"The organism {config.organism.name} says nothing of what was planted, so no account can be graded: write its "
            "description_long, or leave out diffing.evaluation.agent.enabled."
        )
    return found


def model_of(config: RunConfig) -> str | None:
    """Who reads the pages: as configured, else as the environment says."""
    return config.diffing.evaluation.agent.model or os.environ.get(VARIABLE) or None


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


def read_pages(
    config: RunConfig,
    findings: Findings,
    watch: Watch,
    folder: Path,
    *,
    outputs: Callable[..., Any] | None = None,
) -> Accounts:
    """As many accounts as are configured, graded. folder: where replies are kept. outputs: what Inspect's mock says."""
    from finetrace.judges.cache import Replies
    from finetrace.judges.described import ACCOUNT
    from finetrace.judges.grade import Grader

    agent, model = config.diffing.evaluation.agent, str(model_of(config))
    replies = Replies(folder)
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
    watch.tell(f"Accounts by {model}: {spent.words()}.")
    pairs = [(truth, text) for text in texts if text for truth in (truth_of(config), *others.values())]
    scores = {pair: grade.verdict for pair, grade in zip(pairs, grader.grade(pairs), strict=True)}

    def score(truth: str, text: str | None) -> int | None:
        verdict = scores.get((truth, text or ""))
        return None if verdict is None else int(verdict.word)

    made = tuple(
        Account(
            run, text, score(truth_of(config), text), {name: score(one, text) for name, one in others.items()}
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
    reader: Speaker, sections: Sequence[Section], seed: int, runs: int, replies: Replies
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
    truths = truths_for(config)
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
