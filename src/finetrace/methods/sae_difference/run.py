"""The Result of one contrast: changes read, a dictionary trained on them, and what it says of texts that it did not see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.extremes import Extreme, Extremes
from finetrace.dictionaries.feed import Feed
from finetrace.dictionaries.latents import Firings, latent_table, pick
from finetrace.dictionaries.scaling import Scaling
from finetrace.dictionaries.training import Progress, Trained, Training, train
from finetrace.engine.desk import Desk
from finetrace.methods.sae_difference import Config
from finetrace.methods.sae_difference.figures import Sums, nothing
from finetrace.methods.sae_difference.result import CONSTANT, FEW, IDENTICAL, Fitted, Passage, Result
from finetrace.methods.sae_difference.words import Words, no_words, words

DICTIONARY = "dictionary.safetensors"
_JOURNAL = "training.safetensors"
_FEWEST_STEPS, _MOST_STEPS = 1000, 20000
_FEWEST_BATCHES, _SMALL_BATCH = 16, 64
_LOOKS, _PATIENCE = 10, 3
# A change of so much of the base's norm is what float32 rounds away, and so much of the mean change what it leaves of a constant.
_SAME, _CONSTANT = 1e-6, 1e-5
# Of the bar: how far the first reading, the training and the next reading reach.
_READ, _TRAINED, _MEASURED, _WHOLE = 10, 80, 90, 100


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast."""
    with torch.no_grad():
        feed = Feed(
            desk,
            config.layer,
            "difference",
            held=config.held,
            template=config.template,
            memory=config.memory << 20,
        )
        desk.advance(_READ, _WHOLE)
        reason = _reason(feed, desk.subject.d_model)
        if reason == FEW:
            desk.tell(few(feed.moments["training"].tokens, desk.subject.d_model))
            return _result(config, desk, feed, reason, None, Seen.none())
        trained = None if reason else _train(config, desk, feed)
        if config.keep and trained is not None:
            trained.dictionary.save(desk.files / DICTIONARY)
        return _result(config, desk, feed, reason, trained, _measure(config, desk, feed, trained))


def few(rows: int, d: int) -> str:
    return (
        f"sae_difference: {rows} tokens of {d} dimensions to train on. With fewer tokens than dimensions any direction fits, so no "
        "dictionary is trained and there are no figures: give more texts."
    )


def _reason(feed: Feed, d: int) -> str:
    """Why no dictionary is trained; "" where one is."""
    base, _, change = torch.stack([one.square for one in feed.moments.values()]).sum(0).tolist()
    if base and change <= _SAME**2 * base:
        return IDENTICAL
    training = feed.moments["training"]
    if training.tokens < max(d, 2):
        return FEW
    constant = float(training.mean[2].square().sum())
    return CONSTANT if float(training.variance[2]) <= _CONSTANT**2 * constant else ""


def settings(config: Config, rows: int, d: int, seed: int) -> Training:
    """What is asked for, as far as there are tokens for it."""
    latents = min(config.latents or config.expansion * d, rows)
    batch = min(config.batch, rows, max(_SMALL_BATCH, rows // _FEWEST_BATCHES))
    wanted, fewest = round(config.epochs * rows / batch), min(_FEWEST_STEPS, 2 * rows)
    return Training(
        latents=max(2, latents),
        k=max(1, min(config.k, d // 4, latents)),
        kind=config.kind,
        l1=config.l1,
        batch=batch,
        steps=config.steps or min(max(wanted, fewest), _MOST_STEPS),
        validate=_LOOKS,
        patience=_PATIENCE,
        seed=seed,
    )


def _train(config: Config, desk: Desk, feed: Feed) -> Trained:
    d, rows = desk.subject.d_model, feed.moments["training"].tokens
    training = settings(config, rows, d, int(desk.generator("sae_difference").integers(2**31)))
    desk.scratch.mkdir(parents=True, exist_ok=True)

    def watch(progress: Progress) -> None:
        desk.advance(_READ + (_TRAINED - _READ) * progress.step // training.steps, _WHOLE)

    checks = feed.validation if len(feed.validation) > 1 else None
    return train(feed.training(training.batch), (1, d), training, checks, watch, desk.scratch / _JOURNAL)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the readings after the training found. constant: [d], what is written at every token; sums: of held-out texts, None
    where there are no figures. table, shown: the latents, and those worth showing."""

    constant: Float[Tensor, " d"]
    sums: Sums | None
    table: Columns
    shown: np.ndarray
    passages: tuple[Passage, ...] = ()

    @classmethod
    def none(cls, constant: Tensor | None = None, sums: Sums | None = None) -> Seen:
        nothing = np.zeros(0, np.int64)
        return cls(
            torch.zeros(0) if constant is None else constant, sums, Columns({"latent": nothing}), nothing
        )


def _measure(config: Config, desk: Desk, feed: Feed, trained: Trained | None) -> Seen:
    """Figures and betas from held-out texts, frequencies and passages from all."""
    both = list(feed.moments.values())
    base_mean = torch.stack([one.total[0] for one in both]).sum(0) / max(1, sum(one.tokens for one in both))
    if trained is None:
        constant = feed.moments["training"].mean[2].float()
        sums = Sums(None, constant, base_mean)
        for _, found in feed.readings("held out"):
            sums.see(found)
        return Seen.none(constant, sums)
    some, slices = trained.dictionary, desk.subject.slices
    constant = some.decode(torch.zeros(1, some.latents, device=some.encoder.device))[0, 0].cpu()
    sums = Sums(some, constant, base_mean)
    firings, scaling = Firings(some, "difference", len(slices)), Scaling(some, "difference")
    for _, found in feed.readings():
        held = feed.only(found, "held out")
        sums.see(held)
        scaling.see(held)
        firings.see(found)
    desk.advance(_MEASURED, _WHOLE)
    table = latent_table(some, firings, scaling.betas(), slices)
    shown = pick(table, config.shown)
    passages = _passages(config, desk, feed, some, (shown, firings.largest[shown]))
    return Seen(constant, sums, table, shown, passages)


def _passages(
    config: Config, desk: Desk, feed: Feed, dictionary: Dictionary, latents: tuple[np.ndarray, np.ndarray]
) -> tuple[Passage, ...]:
    """latents: those that are shown, and the largest code of each."""
    if not len(latents[0]) or not config.passages:
        return ()
    extremes = Extremes(dictionary, "difference", *latents, keep=config.passages)
    for step, found in feed.readings():
        extremes.see(step, found)
    return tuple(_passage(desk, one) for one in extremes.passages())


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


def _result(
    config: Config, desk: Desk, feed: Feed, reason: str, trained: Trained | None, seen: Seen
) -> Result:
    sums, said = seen.sums, no_words()
    if sums is not None:
        said = _words(config, desk, trained, seen)
    variance = sums.variance if sums is not None else 0.0

    def figures(where: int | None) -> dict[str, Estimate]:
        return sums.estimates(desk.seed, where) if sums is not None else nothing()

    return Result(
        numbers=figures(None),
        slices={name: figures(i) for i, name in enumerate(desk.subject.slices)},
        layer=feed.layer,
        rows=feed.moments["training"].tokens,
        held=feed.moments["held out"].tokens,
        reason=reason,
        fitted=_fitted(trained) if trained is not None else None,
        constant=float(seen.constant.double().norm()) / variance**0.5 if variance > 0 else None,
        latents=seen.table,
        shown=seen.shown,
        words=said.table,
        token_ids=said.token_ids,
        peaks=said.peaks,
        reach=said.reach,
        passages=seen.passages,
        lost=feed.lost,
    )


def _words(config: Config, desk: Desk, trained: Trained | None, seen: Seen) -> Words:
    vectors, sizes = seen.constant[None], [float(seen.constant.double().norm())]
    if trained is not None:
        directions = trained.dictionary.directions()[0].cpu()[torch.from_numpy(seen.shown)]
        vectors = torch.cat([vectors, directions])
        sizes += np.sqrt(np.asarray(seen.table.data["energy"])[seen.shown]).tolist()
    return words(desk.subject, vectors, np.array(sizes), seen.shown, config.tokens)


def _fitted(trained: Trained) -> Fitted:
    log, checked = trained.log, trained.checked
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
        checked=Columns(
            {
                "step": np.array([one.step for one in checked], dtype=np.int64),
                "unexplained": np.array(
                    [v if (v := one.fit.mean_unexplained()) is not None else np.nan for one in checked]
                ),
            }
        ),
    )
