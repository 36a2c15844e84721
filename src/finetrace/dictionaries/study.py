"""One contrast's dictionary, from reading the states to what its latents do: the course that all methods that train one share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from finetrace.core.dictionaries import Options, course
from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.extremes import Extreme, Extremes
from finetrace.dictionaries.feed import Feed
from finetrace.dictionaries.findings import (
    CONSTANT,
    FEW,
    IDENTICAL,
    LOST,
    STILL,
    Fitted,
    Passage,
    Untrainable,
    why,
)
from finetrace.dictionaries.gallery import EXAMPLES, Gallery, gallery
from finetrace.dictionaries.latents import Firings, latent_table, pick
from finetrace.dictionaries.reading import Tokens
from finetrace.dictionaries.scaling import Scaling
from finetrace.dictionaries.training import Progress, Share, Trained, Training, train
from finetrace.engine.desk import Desk

__all__ = ["DICTIONARY", "Latents", "Study", "asked", "fitted", "latents_of", "read_again", "study"]

DICTIONARY = "dictionary.safetensors"
_JOURNAL = "training.safetensors"
_LOOKS, _PATIENCE = 10, 3
# A change of so much of the base's norm is what float32 rounds away, and so much of a mean what it leaves of a constant.
_SAME, _CONSTANT = 1e-6, 1e-5
# Of the bar: how far the first reading, the training and the next reading reach.
_READ, _TRAINED, _MEASURED, _WHOLE = 10, 80, 90, 100


@dataclass(frozen=True, eq=False)
class Study:
    """feed: the states, parted by text. reason: why no dictionary was trained, "" where one was; trained: None then."""

    feed: Feed
    reads: Literal["both", "difference"]
    reason: str
    trained: Trained | None

    @property
    def dictionary(self) -> Dictionary | None:
        return self.trained.dictionary if self.trained is not None else None

    @property
    def measurable(self) -> bool:
        """Whether there are figures: of a dictionary, or of a change that is nothing or a constant."""
        return why(self.reason, 0) is None


def study(
    name: str,
    options: Options,
    desk: Desk,
    reads: Literal["both", "difference"],
    more: Callable[[Training], Training] = lambda training: training,
) -> Study:
    """name: of the method. more: what it asks of the training beyond what all are asked for."""
    feed = Feed(
        desk,
        options.layer,
        reads,
        held=options.held,
        template=options.template,
        memory=options.memory << 20,
    )
    desk.advance(_READ, _WHOLE)
    rows, d, trained = feed.moments["training"].tokens, desk.subject.d_model, None
    reason = _reason(feed, reads, d)
    if not reason:
        training = more(asked(options, rows, d, int(desk.generator(name).integers(2**31))))
        try:
            trained = _train(desk, feed, training)
        except Untrainable as error:
            reason = error.reason
            desk.tell(f"{name}: {error}")
    if (none := why(reason, rows)) is not None:
        desk.tell(f"{name}, {rows} tokens of {d} dimensions to train on: {none.long}")
    if options.keep and trained is not None:
        trained.dictionary.save(desk.files / DICTIONARY, {"reads": reads, "layer": feed.layer})
    return Study(feed, reads, reason, trained)


def _reason(feed: Feed, reads: Literal["both", "difference"], d: int) -> str:
    """Why no dictionary can be trained; "" where one may be."""
    base, _, change = torch.stack([one.square for one in feed.moments.values()]).sum(0).tolist()
    if base and change <= _SAME**2 * base:
        return IDENTICAL
    training = feed.moments["training"]
    if training.tokens < max(d, 2):
        return LOST if feed.lost and not any(one.tokens for one in feed.moments.values()) else FEW
    still = training.variance <= _CONSTANT**2 * training.mean.square().sum(1)
    if reads == "difference":
        return CONSTANT if bool(still[2]) else ""
    return STILL if bool(still[:2].any()) else ""


def asked(options: Options, rows: int, d: int, seed: int) -> Training:
    """What is asked for, as far as there are tokens for it."""
    size = course(options, rows, d)
    return Training(
        latents=size.latents,
        k=max(1, min(options.k, d // 4, size.latents)),
        kind=options.kind,
        l1=options.l1,
        batch=size.batch,
        steps=size.steps,
        validate=_LOOKS,
        patience=_PATIENCE,
        seed=seed,
    )


def _train(desk: Desk, feed: Feed, training: Training) -> Trained:
    desk.scratch.mkdir(parents=True, exist_ok=True)

    def watch(progress: Progress) -> None:
        desk.advance(_READ + (_TRAINED - _READ) * progress.step // training.steps, _WHOLE)

    dims = (feed.models, desk.subject.d_model)
    checks = feed.validation if len(feed.validation) > 1 else None
    return train(
        feed.training(training.batch),
        dims,
        training,
        checks,
        watch,
        desk.scratch / _JOURNAL,
        feed.validation_texts,
    )


@dataclass(frozen=True, eq=False)
class Latents:
    """table: one row a latent, none without a dictionary. shown: those worth showing, best first; largest: [shown], the largest
    code of each."""

    table: Columns
    shown: np.ndarray
    largest: np.ndarray

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self.table.data[name])


def latents_of(one: Study, desk: Desk, count: int) -> Latents:
    """Betas from held-out texts, frequencies from all; `count` are shown."""
    dictionary, slices = one.dictionary, desk.subject.slices
    if dictionary is None:
        none = np.zeros(0, np.int64)
        return Latents(Columns({"latent": none}), none, np.zeros(0))
    firings, scaling = Firings(dictionary, one.reads, len(slices)), Scaling(dictionary, one.reads)
    for _, tokens in one.feed.readings():
        firings.see(tokens)
        scaling.see(one.feed.only(tokens, "held out"))
    desk.advance(_MEASURED, _WHOLE)
    table = latent_table(dictionary, firings, scaling.betas(), slices)
    shown = pick(table, count)
    return Latents(table, shown, firings.largest[shown])


def read_again(
    one: Study,
    desk: Desk,
    latents: Latents,
    held_out: Callable[[Tokens], None],
    passages: int,
    examples: int = 0,
) -> tuple[Passage, ...]:
    """A last reading: held-out tokens are given to `held_out`; passages, of all texts, are kept of each shown latent. examples:
    so many texts of every latent, and of each range of its strength, are kept in a file beside the result."""
    dictionary, extremes = one.dictionary, None
    if dictionary is not None and len(latents.shown) and passages:
        extremes = Extremes(dictionary, one.reads, latents.shown, latents.largest, keep=passages)
    with _gallery(one, desk, latents, examples) as shown:
        for step, tokens in one.feed.readings():
            held_out(one.feed.only(tokens, "held out"))
            if extremes is not None:
                extremes.see(step, tokens)
            if shown is not None:
                shown.see(step, tokens)
    if shown is not None:
        (desk.scratch / EXAMPLES).replace(desk.files / EXAMPLES)
    return tuple(_passage(desk, found) for found in extremes.passages()) if extremes is not None else ()


def _gallery(
    one: Study, desk: Desk, latents: Latents, examples: int
) -> AbstractContextManager[Gallery | None]:
    """Written in the scratch folder, where what a killed run leaves of it goes with the rest."""
    dictionary = one.dictionary
    if dictionary is None or not examples or bool(latents.column("dead").all()):
        return nullcontext()
    largest = latents.column("largest_code").astype(np.float64)
    about = {"layer": one.feed.layer, "reads": one.reads, "unit": "code"}
    return gallery(
        desk.scratch / EXAMPLES, dictionary, one.reads, largest, desk.subject, k=examples, about=about
    )


def _passage(desk: Desk, one: Extreme) -> Passage:
    return Passage(
        latent=one.latent,
        bin=one.bin,
        slice=desk.subject.slices[one.slice],
        row=one.row,
        value=one.score,
        tokens=desk.subject.spell(list(one.ids)),
        values=one.values,
        folded=one.folded,
    )


def fitted(trained: Trained, checked: Sequence[str]) -> Fitted:
    """checked: names of the shares that are not given back: of each side read, and for two of tuned - base."""
    log, looks = trained.log, trained.checked
    shares = [(*one.fit.unexplained, one.fit.difference) for one in looks]
    unexplained: dict[str, np.ndarray | list[str]] = {
        name: np.array([_known(row[i]) for row in shares]) for i, name in enumerate(checked)
    }
    return Fitted(
        latents=trained.dictionary.latents,
        k=log[-1].k,
        batch=log[-1].rows // log[-1].step,
        steps=log[-1].step,
        epochs=trained.epochs,
        dead=int(trained.dead.sum()),
        stopped=trained.stopped,
        warnings=trained.warnings,
        log=Columns(
            {
                "step": np.array([one.step for one in log]),
                "active": np.array([one.active for one in log]),
                "threshold": np.array([one.threshold for one in log]),
                "idle": np.array([one.dead for one in log]),
                "lr": np.array([one.lr for one in log]),
            }
        ),
        checked=Columns({"step": np.array([one.step for one in looks], np.int64), **unexplained}),
    )


def _known(share: Share | None) -> float:
    return np.nan if share is None or share.value is None else share.value
