"""Judges and served models as a user names them: checked before anything loads, made when they are first asked.

A judge is `MODEL` or `RUBRIC=MODEL`, or `RUBRIC@FILE=MODEL` for a classifier's own instruction. MODEL is Inspect's name
of a model (`openai/gpt-4o`, `hf/org/name`, `mockllm/model`) or `local:FOLDER`. `label=MODEL` judges no answers: it writes labels
of latents and scores them; of two, the first writes and the second scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.api.names import check_source
from finetrace.api.names import resolve as bundled_or_same
from finetrace.core.card import Needs
from finetrace.core.errors import BadInput, unknown
from finetrace.core.runkey import digest

if TYPE_CHECKING:
    from finetrace.api.request import Request
    from finetrace.engine import Answers
    from finetrace.judges.cost import Spent
    from finetrace.judges.grade import Grader
    from finetrace.judges.parity import Parity
    from finetrace.judges.rubrics import Rubric
    from finetrace.judges.speak import Speaker
    from finetrace.stats.prevalence import Accuracy

__all__ = [
    "asked_by",
    "cost_of",
    "cost_of_labels",
    "identity",
    "judges_for",
    "measured",
    "parity",
    "problems",
    "rubrics",
    "served_answers",
    "served_problems",
]

DEFAULT, LABEL = "refusal", "label"
_SPEC = re.compile(r"(?:(?P<rubric>[a-z_]+)(?:@(?P<template>[^=]+))?=)?(?P<model>[^=].*)", re.DOTALL)
_LOCAL = "local:"


@dataclass(frozen=True)
class _Spec:
    rubric: str
    template: str | None
    model: str


def rubrics() -> dict[str, Rubric]:
    """All rubrics for answers, by name."""
    from finetrace.judges import formats
    from finetrace.judges import rubrics as ours

    known = (
        ours.REFUSAL, ours.STRONGREJECT, ours.COHERENCE,
        formats.HARMBENCH, formats.LLAMAGUARD, formats.WILDGUARD, formats.WILDGUARD_HARM,
    )  # fmt: skip
    return {one.name: one for one in known}


def problems(request: Request, needs: Sequence[Needs] = ()) -> list[str]:
    """What can be seen to be wrong with the judges before a model loads: rubrics, providers, libraries and keys that are
    missing (a key by its name only), labels that cannot be read. needs: of the methods, one of which has to ask judges."""
    found: list[str] = []
    words: set[str] = set()
    labels: list[bool] = []
    for judge in request.judges:
        try:
            spec = _parsed(judge)
            labels.append(spec.rubric == LABEL)
            rubric = _rubric(spec)
            words |= set() if labels[-1] else set(rubric.words)
            found += served_problems(spec.model, role="judge")
        except BadInput as error:
            found.append(str(error))
    found += _unasked(labels, needs) if needs else []
    if request.judge_labels is not None:
        found += _label_problems(request, words)
    return found


def _unasked(labels: Sequence[bool], needs: Sequence[Needs]) -> Iterator[str]:
    """labels: of each judge, whether it is to label latents."""
    wanted = any(one.labels for one in needs)
    if False in labels and not any(one.judged for one in needs):
        yield "Judges are named, and no method asks them: add behaviour to --methods."
    if True in labels and not wanted:
        yield "A judge of labels is named, and no method is to label anything: --set sae_difference.labels=4."
    if wanted and True not in labels:
        yield "Latents are to be labelled, and nobody is named to do it: --judge label=MODEL."
    if sum(labels) > 2:
        yield f"{sum(labels)} models are named for labels: one writes them and another may score them, there is no third."


def served_problems(model: str, role: str = "served") -> list[str]:
    """What keeps a model that answers (Inspect's name, or local:FOLDER) from being made; nothing is loaded."""
    from finetrace.judges.served import problem

    if not model.startswith(_LOCAL):
        said = problem(model)
        return [] if said is None else [said]
    try:
        check_source(role, model.removeprefix(_LOCAL))
    except BadInput as error:
        return [str(error)]
    return []


def identity(request: Request, needs: Needs | None = None) -> list[Any]:
    """All that moves a verdict, but for the answers: part of the run key. Of the judges that a method of such needs asks, or
    with None of all."""
    from finetrace.judges.agreement import read_labels

    specs = [spec for spec in map(_parsed, request.judges) if needs is None or _asks(needs, spec.rubric)]
    named: list[Any] = [[_speaker(spec.model).identity, *_questions(spec)] for spec in specs]
    if request.judge_labels is None or all(spec.rubric == LABEL for spec in specs):
        return named
    labels = [vars(one) for one in read_labels(request.judge_labels, _all_words())]
    return [*named, {"labels": digest(labels)}]


def judges_for(
    request: Request,
    tell: Callable[[str], None] = lambda line: None,
    outputs: Callable[..., Any] | None = None,
) -> dict[str, Grader]:
    """The judges that the user named, as `RUBRIC=MODEL`, for `Desk.judges`; none is asked yet. Replies are kept in the
    report's folder. tell: a line on what each call cost. outputs: what Inspect's mock says, for tests."""
    from finetrace.judges.cache import Replies
    from finetrace.judges.cost import Price
    from finetrace.judges.grade import Grader

    price = None if request.judge_price is None else Price(*request.judge_price)
    found: dict[str, Grader] = {}
    for judge in dict.fromkeys(request.judges):
        spec = _parsed(judge)
        grader = Grader(
            rubric=_rubric(spec),
            speaker=_speaker(spec.model) if outputs is None else _mock(spec.model, outputs),
            seed=request.seed,
            replies=Replies(_folder(request)),
            tell=tell,
            price=price,
        )
        found[grader.name] = grader
    if sum(judge.rubric.name != LABEL for judge in found.values()) == 1:
        tell("One judge was named: with two or more the report shows where judges disagree.")
    return found


def asked_by(needs: Needs, judges: Mapping[str, Grader]) -> dict[str, Grader]:
    """Of the judges, by name, those that a method of such needs asks."""
    return {name: judge for name, judge in judges.items() if _asks(needs, name.partition("=")[0])}


def _asks(needs: Needs, rubric: str) -> bool:
    return needs.labels > 0 if rubric == LABEL else needs.judged


def measured(request: Request, judges: Mapping[str, Grader]) -> dict[str, Accuracy]:
    """Each judge's accuracy on the labelled answers (`--judge-labels`), for `Desk.measured`; the judges are asked for it. A
    judge for whose words there are no labels is absent."""
    from finetrace.judges.agreement import accuracy, read_labels

    if request.judge_labels is None or not judges:
        return {}
    labels = read_labels(request.judge_labels, _all_words())
    found: dict[str, Accuracy] = {}
    for name, judge in judges.items():
        mine = [one for one in labels if one.verdict in _readable(judge.rubric)]
        if mine:
            found[name] = accuracy(judge, mine, (judge.rubric.positive,))
    return found


def cost_of(request: Request, pairs: int, characters: int) -> dict[str, Spent]:
    """What judging would cost at most, by judge, for a dry run: nothing is asked.

    pairs: (request, answer) pairs of all sides together. characters: of a usual pair.
    """
    from finetrace.judges.cost import estimate

    found: dict[str, Spent] = {}
    for judge in dict.fromkeys(request.judges):
        spec = _parsed(judge)
        if spec.rubric == LABEL:
            continue
        rubric = _rubric(spec)
        one = estimate(rubric, [("x" * (characters // 2), "x" * (characters - characters // 2))])
        found[f"{rubric.name}={spec.model}"] = replace(
            one, asked=pairs, tokens_in=pairs * one.tokens_in, tokens_out=pairs * one.tokens_out
        )
    return found


def cost_of_labels(request: Request, labels: int) -> dict[str, Spent]:
    """What so many labels would cost at most, by judge: nothing is asked."""
    from finetrace.dictionaries.labels import at_most

    models = [spec.model for spec in map(_parsed, dict.fromkeys(request.judges)) if spec.rubric == LABEL]
    if not models or not labels:
        return {}
    written, scored = at_most(labels)
    if len(models) == 1:
        return {f"{LABEL}={models[0]}": written + scored}
    return {f"{LABEL}={models[0]}": written, f"{LABEL}={models[1]}": scored}


def served_answers(
    model: str,
    answers: Answers,
    folder: Path | None = None,
    *,
    outputs: Callable[..., Any] | None = None,
) -> list[str | None]:
    """What a served model (Inspect's name, or local:FOLDER) answers to the audit's prompts in the headline's arm: greedy,
    with the audit's token limit and system prompt; None where it failed. Raises BadInput where the audit samples.

    answers: `Opened.written`. folder: where replies are kept (`<out>/runs/.judges`), None for memory only.
    """
    from finetrace.judges.cache import Replies
    from finetrace.judges.provider import served_texts

    arm = answers.arms[answers.main]
    speaker = _speaker(model) if outputs is None else _mock(model, outputs)
    return served_texts(
        speaker, answers.prompts, answers.decoding, system=arm.system or None, replies=Replies(folder)
    )


def parity(
    model: str,
    answers: Answers,
    folder: Path | None = None,
    *,
    side: str = "tuned",
    outputs: Callable[..., Any] | None = None,
) -> Parity:
    """Whether what is served is what was audited: `judges.parity.Parity`, with `word`, `sentence`, shares of exact answers
    and of tokens before the first difference, and `serves_the_base` where an adapter is not applied.

    answers: `Opened.written`; its answers of the base and of `side` are written if they are not yet.
    """
    from finetrace.judges.parity import parity as compare

    served = served_answers(model, answers, folder, outputs=outputs)
    local = [[one.text for one in answers.of(name) if one.sample == 0] for name in ("base", side)]
    tokenizer: Any = answers.pair.tokenizer

    def split(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return compare(local[0], local[1], served, split)


def _parsed(judge: str) -> _Spec:
    found = _SPEC.fullmatch(judge)
    if found is None:
        raise BadInput(f"The judge '{judge}' is no MODEL and no RUBRIC=MODEL, e.g. refusal=openai/gpt-4o.")
    return _Spec(found["rubric"] or DEFAULT, found["template"], found["model"])


def _questions(spec: _Spec) -> list[str]:
    """What a judge is asked, as parts of a key."""
    from finetrace.dictionaries.detection import DETECTED

    return [_rubric(spec).identity, *([DETECTED.identity] if spec.rubric == LABEL else [])]


def _rubric(spec: _Spec) -> Rubric:
    from finetrace.dictionaries.detection import LABELLED
    from finetrace.judges.formats import with_template

    known = rubrics() | {LABEL: LABELLED}
    if spec.rubric not in known:
        raise unknown("rubric", spec.rubric, known)
    if spec.template is None:
        return known[spec.rubric]
    path = Path(spec.template).expanduser()
    if not path.is_file():
        raise BadInput(f"The template {spec.template} of the rubric '{spec.rubric}' is not a file.")
    return with_template(known[spec.rubric], path.read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def _speaker(model: str) -> Speaker:
    """One a model: two rubrics share its weights."""
    if model.startswith(_LOCAL):
        from finetrace.judges.local import Local

        return Local(bundled_or_same(model.removeprefix(_LOCAL)))
    from finetrace.judges.served import Served

    return Served(model)


def _mock(model: str, outputs: Callable[..., Any]) -> Speaker:
    from finetrace.judges.served import Served

    return Served(model, outputs=outputs)


def _folder(request: Request) -> Path:
    return request.out / "runs" / ".judges"


def _readable(rubric: Rubric) -> tuple[str, ...]:
    """Labels by which a judge can be measured: on refusing, all four classes count, though it may say only two."""
    four = rubrics()[DEFAULT].words
    return four if rubric.positive == "refuse" else rubric.words


def _all_words() -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for one in rubrics().values() for word in one.words))


def _label_problems(request: Request, words: set[str]) -> list[str]:
    from finetrace.judges.agreement import read_labels

    if not request.judges:
        return ["Labels for judges are given, and no judge: name one with --judge."]
    try:
        labels = read_labels(request.judge_labels, _all_words())
    except BadInput as error:
        return [f"The judge labels: {error}"]
    four = set(rubrics()[DEFAULT].words)
    usable = words | (four if words & four else set())
    if usable and not any(one.verdict in usable for one in labels):
        return [f"The judge labels have no verdict in the words of the judges: {', '.join(sorted(usable))}."]
    return []
