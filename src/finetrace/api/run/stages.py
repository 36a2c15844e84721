"""The stages of a run: preprocessing, diffing, evaluation; one of them, or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetrace.api.audit import Ready, make_ready, run_ready
from finetrace.api.request import Request
from finetrace.api.rules import judge, parse_rule
from finetrace.api.run.modes import STAGES
from finetrace.api.run.shelved import WORK, at_hand, work_of
from finetrace.api.run.spec import Spec, folder_of, spec_for
from finetrace.api.watch import Watch
from finetrace.config.tree import RunConfig
from finetrace.core.findings import Findings
from finetrace.report import write_report

if TYPE_CHECKING:
    from finetrace.api.run.evaluation import Graded

__all__ = ["STAGES", "Done", "apart", "perform"]


@dataclass(frozen=True)
class Done:
    """What became of a run. folder: of its report. findings: None where nothing was diffed or read. graded: None where
    nothing was evaluated. skipped: stages that the mode left out."""

    config: RunConfig
    folder: Path
    findings: Findings | None
    graded: Graded | None = None
    skipped: tuple[str, ...] = ()


def perform(
    config: RunConfig,
    watch: Watch,
    command: str = "",
    *,
    apart: Sequence[str] = (),
    allow_undecided: bool = False,
    ready: Ready | None = None,
) -> Done:
    """Runs the stages of the configuration's mode. What is on the shelf already is not made again.

    apart: words by which a sweep's runs differ beside what the report's folder says anyway. allow_undecided: what a rule
    neither passes nor breaks is to pass. ready: the first stage, done before for several runs of one pair, which stays
    loaded. Raises ConfigErrors with all that is wrong before anything loads.
    """
    for note in config.notes:
        watch.tell(note)
    spec = spec_for(config)
    stages, folder = STAGES[config.pipeline.mode], folder_of(config, tuple(apart))
    findings: Findings | None = None
    stays = ready is not None
    for number, stage in enumerate(stages, 1):
        watch.tell(f"{stage.capitalize()} ({number} of {len(stages)}): {_what(spec, stage)}.")
        if stage == "preprocessing":
            ready = ready or _preprocess(spec, watch, alone=len(stages) == 1)
        elif stage == "diffing":
            findings = _diff(spec, ready, watch, command, stays)
            findings = _ruled(findings, config, allow_undecided)
            write_report(findings, folder)
        elif findings is None:
            findings = _ruled(at_hand(spec, folder), config, allow_undecided)
    graded = _evaluate(config, findings, watch, folder) if "evaluation" in stages and findings else None
    skipped = tuple(name for name in STAGES["full"] if name not in stages)
    return Done(config, folder, findings, graded, skipped)


# Words that the path of a report holds anyway.
_IN_PATH = ("organism", "model", "organism_variant", "diffing/method")


def apart(said: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Of every run of a sweep the words that not all of them have and that its report's folder would not say."""
    shared = set(said[0]).intersection(*said[1:]) if said else set()
    return tuple(
        tuple(word for word in words if word not in shared and word.partition("=")[0] not in _IN_PATH)
        for words in said
    )


def _what(spec: Spec, stage: str) -> str:
    request = spec.request
    side = f"{request.tuned} on {request.base}" if request.tuned else f"{request.base} against itself"
    stored = ", and storing hidden states," if request.store is not None else ""
    return {
        "preprocessing": f"fetching, checking and tokenising{stored} for {side}",
        "diffing": f"{', '.join(request.methods)} on {side}",
        "evaluation": f"what was found against what is known of {spec.config.organism.name}",
    }[stage]


def _preprocess(spec: Spec, watch: Watch, *, alone: bool) -> Ready:
    """Both checkpoints and all data are here afterwards, and have been looked at. alone: nothing follows, so nulls that
    would be trained are not, and what is loaded is let go."""
    request = replace(spec.request, nulls=()) if alone and spec.request.trains_nulls else spec.request
    ready = make_ready(request, spec.chosen, watch)
    opened = ready.opened
    for side, effect in opened.effects.items():
        if side == "tuned" or effect.status not in ("applied", "identical"):
            watch.tell(f"{side}: {effect.describe()}")
    read = ", ".join(f"{s.name} {s.tokens:,}" for s in opened.corpus.summary())
    watch.tell(f"Tokens to read: {opened.corpus.n_tokens:,} ({read}).")
    if alone:
        opened.pair.release()
        _tell_cost(request, spec, watch)
    return ready


def _tell_cost(request: Request, spec: Spec, watch: Watch) -> None:
    from finetrace.api.run.cost import cost_of

    for name, text in cost_of(replace(spec, request=request)).lines():
        watch.tell(f"{name}: {text}")


def _diff(spec: Spec, ready: Ready | None, watch: Watch, command: str, stays: bool) -> Findings:
    ready = ready or make_ready(spec.request, spec.chosen, watch)
    found = run_ready(ready, watch, command=command).findings
    work = work_of(ready)
    if not stays:
        ready.opened.pair.release()
    return replace(found, protocol=found.protocol | {WORK: work})


def _ruled(findings: Findings, config: RunConfig, allow_undecided: bool) -> Findings:
    """The findings with what became of every rule."""
    parsed = [parse_rule(rule) for rule in config.rules]
    return replace(findings, rules=judge(parsed, findings, allow_undecided=allow_undecided))


def _evaluate(config: RunConfig, findings: Findings, watch: Watch, folder: Path) -> Graded:
    from finetrace.api.run.evaluation import evaluate, save

    graded = evaluate(config, findings, watch)
    save(graded, folder)
    return graded
