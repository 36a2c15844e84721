"""Which results an audit needs, what each is called on the shelf, and the jobs for those that are not there yet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetrace.api.calibration import Sets, identity, used
from finetrace.api.judging import identity as judge_identity
from finetrace.api.names import short_name
from finetrace.api.request import Chosen, Request
from finetrace.core.runkey import canonical, digest, run_key
from finetrace.core.shelf import Address, Shelf
from finetrace.data import Corpus
from finetrace.engine import PAIR, SELF, Answers, Contrast, Job, Observer, Subject, make_subject
from finetrace.models import Pair
from finetrace.models.attention import named_attention
from finetrace.store.keeping import identity as identity_of_store

BASE, TUNED = "base", "tuned"
DOSE, NULL = "dose", "null"


@dataclass(frozen=True)
class Item:
    """One result to have: a method on a contrast, and where it lives. protocol: all that the run key hashes but the sides
    themselves, as JSON, so that a shelf can tell which runs may stand beside one another."""

    chosen: Chosen
    contrast: Contrast
    address: Address
    protocol: Mapping[str, Any] = field(default_factory=dict)


def contrasts(pair: Pair) -> tuple[Contrast, ...]:
    """The pair, the base against itself (the noise floor), and each null; not every method reads all of them."""
    nulls = tuple(Contrast(f"null:{side}", side) for side in null_names(pair))
    return (Contrast(PAIR, TUNED), Contrast(SELF, BASE, echo=True), *nulls)


def null_names(pair: Pair) -> tuple[str, ...]:
    return tuple(side for side in pair.sides if side not in (BASE, TUNED))


def items(
    request: Request,
    pair: Pair,
    corpus: Corpus,
    methods: Sequence[Chosen],
    wanted: Sequence[Contrast],
    sets: Sets,
    written: Answers | None = None,
    trained: bool = False,
) -> tuple[Item, ...]:
    """Every result that an audit needs of these contrasts. trained: the nulls were trained in this audit."""
    shared = _shared_key(request, pair, corpus)
    found = []
    for chosen in methods:
        key = shared | _own_key(request, chosen, sets, written) | _method_key(chosen)
        key |= identity_of_store(request.store, pair.dtype) if chosen.needs.steps else {}
        told, others = _protocol(key), _unlabelled(chosen, key)
        told_others = told if others is key else _protocol(others)
        for contrast in (one for one in wanted if reads(chosen, one, trained)):
            mine, said = (key, told) if contrast.label == PAIR else (others, told_others)
            found.append(Item(chosen, contrast, _address(request, pair, chosen, contrast, mine), said))
    return tuple(found)


def _unlabelled(chosen: Chosen, key: dict[str, Any]) -> dict[str, Any]:
    """The key of all but the pair, whose latents alone are labelled: asking for labels makes no null again."""
    if not chosen.needs.labels:
        return key
    kept = {name: part for name, part in key.items() if name != "judges" or chosen.needs.judged}
    return kept | {"config": {**key["config"], "labels": 0}}


def _method_key(chosen: Chosen) -> dict[str, Any]:
    card = chosen.card
    return {"method": card.name, "version": card.version, "config": dataclasses.asdict(chosen.config)}


def _protocol(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key's parts as a manifest holds them: plain JSON, of a chat template its hash alone."""
    template = key["template"]
    return json.loads(canonical({**key, "template": None if template is None else digest(template)}))


def reads(chosen: Chosen, contrast: Contrast, trained: bool = False) -> bool:
    """Whether the method has a result on the contrast. One with `run` says so itself of the floor and of dosed nulls; one
    that asks prompts reads these only where the nulls were trained here, as only they can decide then."""
    if not chosen.card.runs:
        return True
    kind = contrast.label.partition(":")[0]
    needs = chosen.needs
    dosed = needs.dosed and needs.nulls and (trained or not needs.prompts)
    return {SELF: needs.floor, DOSE: dosed, NULL: needs.nulls}.get(kind, True)


# Of the shared key, what does not reach a method that never sees the texts.
_OF_TEXTS = ("corpus", "slices")


def _own_key(request: Request, chosen: Chosen, sets: Sets, written: Answers | None) -> dict[str, Any]:
    """What the key of one method has beside what all have: the calibration sets it may use, the prompts and how they are
    answered and judged; no texts if it sees none."""
    if not chosen.card.runs:
        return {}
    own: dict[str, Any] = {} if chosen.card.observes or chosen.needs.steps else dict.fromkeys(_OF_TEXTS)
    own |= {"calibration": {name: identity(rows) for name, rows in used(chosen.needs, sets).items()}}
    if chosen.needs.prompts and written is not None:
        own |= {"asked": written.identity}
    judges = judge_identity(request, chosen.needs)
    return own | ({"judges": judges} if judges else {})


def _shared_key(request: Request, pair: Pair, corpus: Corpus) -> dict[str, Any]:
    return {
        "base": pair.identity(BASE),
        "tokenizer": pair.tokenizer_identity(),
        "vocabulary": vocabulary_identity(pair),
        "corpus": corpus.identity,
        "slices": corpus.slices,
    } | settings_key(request, pair)


def settings_key(request: Request, pair: Pair) -> dict[str, Any]:
    """Of the key what is neither a checkpoint nor a text: known before any weight is loaded."""
    return {
        "template": request.chat_template,
        "system": request.system,
        "context": request.max_tokens,
        "seed": request.seed,
        "dtype": str(pair.dtype),
        "device": pair.device_type,
        "shape": request.shape,
        "quantization": request.quantization,
        "attention": named_attention(pair.config(BASE), request.attn_implementation),
    } | ({"thinking": True} if request.thinking else {})


def vocabulary_identity(pair: Pair) -> str:
    """The tokens that all sides share: a null that lacks some makes the pair's own distributions others."""
    shared = pair.shared_ids
    return "the base's" if shared is None else digest(shared.tolist())


def _address(
    request: Request, pair: Pair, chosen: Chosen, contrast: Contrast, shared: dict[str, Any]
) -> Address:
    kind = contrast.label.partition(":")[0]
    key = run_key(
        shared
        | {
            "contrast": kind,
            "other": pair.identity(contrast.side),
            "scale": contrast.scale,
        }
    )
    base = short_name(request.base)
    side = short_name(request.tuned) if contrast.side == TUNED and request.tuned else contrast.side
    organism = side.removeprefix(f"{base}/") if contrast.side != BASE else base
    variant = {PAIR: "default", "null": "default"}.get(kind, kind)
    if request.shelved is not None and kind == PAIR:
        organism, variant = request.shelved
    return Address(base, organism, variant, chosen.card.name, key)


def jobs(missing: Sequence[Item], shelf: Shelf, request: Request, pair: Pair, corpus: Corpus) -> list[Job]:
    return [
        Job(
            method=item.chosen.card.name,
            contrast=item.contrast,
            needs=item.chosen.needs,
            observer=observer_maker(item.chosen, subject(request, pair, corpus, item.contrast.side)),
            journal={} if request.in_memory else shelf.scratch(item.address),
        )
        for item in missing
        if item.chosen.card.observes
    ]


def observer_maker(chosen: Chosen, known: Subject) -> Callable[[], Observer]:
    return lambda: chosen.card.part("observe").observer(chosen.config, known)


def subject(request: Request, pair: Pair, corpus: Corpus, side: str = TUNED) -> Subject:
    """What an observer of the base against `side` may know."""
    return make_subject(pair, corpus.slices, side, request.seed)
