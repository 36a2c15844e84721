"""The Result of one contrast: both models' states read, a crosscoder trained on them, and what held-out texts say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import SHARED, Dictionary
from finetrace.dictionaries.extremes import Extreme, Extremes
from finetrace.dictionaries.feed import Feed
from finetrace.dictionaries.latents import Firings, latent_table, pick
from finetrace.dictionaries.scaling import Scaling
from finetrace.dictionaries.training import Progress, Share, Trained, Training, train
from finetrace.engine.desk import Desk
from finetrace.methods.crosscoder import Config
from finetrace.methods.crosscoder.figures import Sums, nothing
from finetrace.methods.crosscoder.result import FEW, IDENTICAL, TAGS, Fitted, Passage, Result
from finetrace.methods.crosscoder.words import Words, no_words, words

DICTIONARY = "dictionary.safetensors"
_JOURNAL = "training.safetensors"
_FEWEST_STEPS, _MOST_STEPS = 1000, 20000
_FEWEST_BATCHES, _SMALL_BATCH = 16, 64
_LOOKS, _PATIENCE = 10, 3
# A change of so much of the base's norm is what float32 rounds away.
_SAME = 1e-6
# Of the bar: how far the first reading, the training and the next reading reach.
_READ, _TRAINED, _MEASURED, _WHOLE = 10, 80, 90, 100


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast."""
    with torch.no_grad():
        feed = Feed(
            desk, config.layer, "both", held=config.held, template=config.template, memory=config.memory << 20
        )
        desk.advance(_READ, _WHOLE)
        reason = _reason(feed, desk.subject.d_model)
        if reason == FEW:
            desk.tell(few(feed.moments["training"].tokens, desk.subject.d_model))
            return _result(config, desk, feed, reason, None, _none(), None, ())
        trained = None if reason else _train(config, desk, feed)
        dictionary = trained.dictionary if trained is not None else None
        if config.keep and dictionary is not None:
            dictionary.save(desk.files / DICTIONARY)
        found = _latents(config, desk, feed, dictionary)
        desk.advance(_MEASURED, _WHOLE)
        sums, passages = _figures(config, desk, feed, dictionary, found)
        return _result(config, desk, feed, reason, trained, found, sums, passages)


def few(rows: int, d: int) -> str:
    return (
        f"crosscoder: {rows} tokens of {d} dimensions to train on. With fewer tokens than dimensions any direction fits, so no "
        "dictionary is trained and there are no figures: give more texts."
    )


def _reason(feed: Feed, d: int) -> str:
    """Why no dictionary is trained; "" where one is."""
    base, _, change = torch.stack([one.square for one in feed.moments.values()]).sum(0).tolist()
    if base and change <= _SAME**2 * base:
        return IDENTICAL
    return FEW if feed.moments["training"].tokens < max(d, 2) else ""


def settings(config: Config, rows: int, d: int, seed: int) -> Training:
    """What is asked for, as far as there are tokens for it."""
    latents = max(2, min(config.latents or config.expansion * d, rows))
    batch = min(config.batch, rows, max(_SMALL_BATCH, rows // _FEWEST_BATCHES))
    wanted, fewest = round(config.epochs * rows / batch), min(_FEWEST_STEPS, 2 * rows)
    return Training(
        latents=latents,
        k=max(1, min(config.k, d // 4, latents)),
        kind=config.kind,
        lr=config.lr,
        l1=config.l1,
        code_norm=config.code_norm,
        delta=config.delta,
        exclusive=config.exclusive,
        batch=batch,
        steps=config.steps or min(max(wanted, fewest), _MOST_STEPS),
        validate=_LOOKS,
        patience=_PATIENCE,
        seed=seed,
    )


def _train(config: Config, desk: Desk, feed: Feed) -> Trained:
    d, rows = desk.subject.d_model, feed.moments["training"].tokens
    training = settings(config, rows, d, int(desk.generator("crosscoder").integers(2**31)))
    desk.scratch.mkdir(parents=True, exist_ok=True)

    def watch(progress: Progress) -> None:
        desk.advance(_READ + (_TRAINED - _READ) * progress.step // training.steps, _WHOLE)

    checks = feed.validation if len(feed.validation) > 1 else None
    return train(feed.training(training.batch), (2, d), training, checks, watch, desk.scratch / _JOURNAL)


@dataclass(frozen=True, eq=False)
class Found:
    """The latents, and those worth showing; firings: None without a dictionary."""

    table: Columns
    shown: np.ndarray
    firings: Firings | None

    def column(self, name: str) -> np.ndarray:
        return np.asarray(self.table.data[name])


def _none() -> Found:
    empty = np.zeros(0, np.int64)
    return Found(Columns({"latent": empty}), empty, None)


def _latents(config: Config, desk: Desk, feed: Feed, dictionary: Dictionary | None) -> Found:
    """Betas from held-out texts, frequencies from all."""
    if dictionary is None:
        return _none()
    slices = desk.subject.slices
    firings, scaling = Firings(dictionary, "both", len(slices)), Scaling(dictionary, "both")
    for _, tokens in feed.readings():
        firings.see(tokens)
        scaling.see(feed.only(tokens, "held out"))
    table = latent_table(dictionary, firings, scaling.betas(), slices)
    return Found(table, pick(table, config.shown), firings)


def _figures(
    config: Config, desk: Desk, feed: Feed, dictionary: Dictionary | None, found: Found
) -> tuple[Sums, tuple[Passage, ...]]:
    """A last reading: sums of held-out texts, passages from all."""
    own = found.column("confirmed") if dictionary is not None else np.zeros(0, np.bool_)
    sums = Sums(dictionary, feed.moments["training"].mean[:2], own)
    extremes = None
    if dictionary is not None and found.firings is not None and len(found.shown) and config.passages:
        largest = found.firings.largest[found.shown]
        extremes = Extremes(dictionary, "both", found.shown, largest, keep=config.passages)
    for step, tokens in feed.readings():
        sums.see(feed.only(tokens, "held out"))
        if extremes is not None:
            extremes.see(step, tokens)
    passages = extremes.passages() if extremes is not None else ()
    return sums, tuple(_passage(desk, one) for one in passages)


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
    config: Config,
    desk: Desk,
    feed: Feed,
    reason: str,
    trained: Trained | None,
    found: Found,
    sums: Sums | None,
    passages: tuple[Passage, ...],
) -> Result:
    moments = feed.moments["training"]
    said = no_words() if sums is None else _words(config, desk, feed, trained, found)
    variance = float(moments.variance[0])
    where = [(name, i) for i, name in enumerate(desk.subject.slices)]
    return Result(
        numbers=sums.estimates(desk.seed) if sums is not None else nothing(),
        slices={name: sums.estimates(desk.seed, i) if sums is not None else nothing() for name, i in where},
        layer=feed.layer,
        rows=moments.tokens,
        held=feed.moments["held out"].tokens,
        reason=reason,
        fitted=_fitted(trained) if trained is not None else None,
        constant=float(moments.mean[2].square().sum()) / variance if variance > 0 else None,
        tags=_tags(found) if trained is not None else {},
        latents=found.table,
        shown=found.shown,
        words=said.table,
        token_ids=said.token_ids,
        peaks=said.peaks,
        reach=said.reach,
        passages=passages,
        lost=feed.lost,
    )


def _tags(found: Found) -> dict[str, int]:
    """Live latents by tag, then those of tuned-only that latent scaling upholds, and those that it refutes."""
    tags, live = found.column("tag"), ~found.column("dead")
    counts = {tag: int(((tags == tag) & live).sum()) for tag in TAGS}
    return counts | {name: int((found.column(name) & live).sum()) for name in ("confirmed", "shrunk")}


def _words(config: Config, desk: Desk, feed: Feed, trained: Trained | None, found: Found) -> Words:
    vectors = added(feed, trained, found.shown)
    sizes = vectors[:1].norm(dim=1).double().numpy()
    if trained is not None:
        sizes = np.concatenate([sizes, np.sqrt(found.column("energy")[found.shown])])
    return words(desk.subject, vectors, sizes, found.shown, config.tokens)


def added(feed: Feed, trained: Trained | None, shown: np.ndarray) -> Float[Tensor, "vector d"]:
    """The mean change, then what a code of 1 of each latent adds to the tuned model less what it adds to the base."""
    mean = feed.moments["training"].mean[2:].float()
    if trained is None:
        return mean
    base, tuned = trained.dictionary.directions().cpu()[:, torch.from_numpy(shown)]
    return torch.cat([mean, tuned - base])


def _fitted(trained: Trained) -> Fitted:
    log, checked, dictionary = trained.log, trained.checked, trained.dictionary
    shares = [(*one.fit.unexplained, one.fit.difference) for one in checked]
    columns: dict[str, np.ndarray | list[str]] = {"step": np.array([one.step for one in checked], np.int64)}
    for i, name in enumerate(("base", "tuned", "difference")):
        columns[name] = np.array([_known(row[i]) for row in shares])
    return Fitted(
        latents=dictionary.latents,
        exclusive=int((dictionary.owner != SHARED).sum()),
        k=log[-1].k,
        batch=log[-1].rows // log[-1].step,
        steps=log[-1].step,
        epochs=trained.epochs,
        dead=int(trained.dead.sum()),
        stopped=trained.stopped,
        warnings=trained.warnings,
        log=_log(log),
        checked=Columns(columns),
    )


def _log(log: Sequence[Progress]) -> Columns:
    """One row a step that was logged; idle: dead latents (`dead` of the other table is of one latent)."""
    return Columns(
        {
            "step": np.array([one.step for one in log]),
            "active": np.array([one.active for one in log]),
            "threshold": np.array([one.threshold for one in log]),
            "idle": np.array([one.dead for one in log]),
            "lr": np.array([one.lr for one in log]),
        }
    )


def _known(share: Share | None) -> float:
    return np.nan if share is None or share.value is None else share.value
