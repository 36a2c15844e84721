"""The Result of one contrast: both models' states read, a crosscoder trained on them, and what held-out texts say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.findings import Passage
from finetrace.dictionaries.labelled_latents import labels_of
from finetrace.dictionaries.study import Latents, Study, fitted, latents_of, read_again, study
from finetrace.dictionaries.sums import nothing
from finetrace.dictionaries.training import Training
from finetrace.dictionaries.words import Words, no_words, words
from finetrace.engine.desk import Desk
from finetrace.methods.crosscoder import KEYS, Config
from finetrace.methods.crosscoder.figures import Sums
from finetrace.methods.crosscoder.result import TAGS, Result


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast."""

    def asked(training: Training) -> Training:
        return replace(
            training,
            lr=config.lr,
            code_norm=config.code_norm,
            delta=config.delta,
            exclusive=config.exclusive,
        )

    with torch.no_grad():
        one = study("crosscoder", config, desk, "both", asked)
        latents = latents_of(one, desk, config.shown)
        if not one.measurable:
            return _result(config, desk, one, latents, None, ())
        own = latents.column("confirmed") if one.dictionary is not None else np.zeros(0, np.bool_)
        sums = Sums(one.dictionary, one.feed.moments["training"].mean[:2], own)
        passages = read_again(one, desk, latents, sums.see, config.passages, config.examples)
        return _result(config, desk, one, latents, sums, passages)


def _result(
    config: Config,
    desk: Desk,
    one: Study,
    latents: Latents,
    sums: Sums | None,
    passages: tuple[Passage, ...],
) -> Result:
    moments, trained = one.feed.moments["training"], one.trained
    said = no_words() if sums is None else _words(config, desk, one, latents)

    def figures(where: int | None) -> dict[str, Estimate]:
        return sums.estimates(desk.seed, where) if sums is not None else nothing(KEYS)

    return Result(
        numbers=figures(None),
        slices={name: figures(i) for i, name in enumerate(desk.subject.slices)},
        layer=one.feed.layer,
        rows=moments.tokens,
        held=one.feed.moments["held out"].tokens,
        reason=one.reason,
        fitted=fitted(trained, ("base", "tuned", "difference")) if trained is not None else None,
        tags=_tags(latents) if trained is not None else {},
        latents=latents.table,
        shown=latents.shown,
        words=said.table,
        token_ids=said.token_ids,
        peaks=said.peaks,
        reach=said.reach,
        passages=passages,
        labels=labels_of(one, desk, latents, config.labels),
        lost=one.feed.lost,
    )


def _tags(latents: Latents) -> dict[str, int]:
    """Live latents by tag, then those of tuned-only that latent scaling upholds, and those that it refutes."""
    tags, live = latents.column("tag"), ~latents.column("dead")
    counts = {tag: int(((tags == tag) & live).sum()) for tag in TAGS}
    return counts | {name: int((latents.column(name) & live).sum()) for name in ("confirmed", "shrunk")}


def _words(config: Config, desk: Desk, one: Study, latents: Latents) -> Words:
    vectors = added(one)
    sizes = vectors[:1].norm(dim=1).double().numpy()
    if one.dictionary is not None:
        sizes = np.concatenate([sizes, np.sqrt(latents.column("energy"))])
    return words(desk.subject, vectors, sizes, latents.shown, config.tokens)


def added(one: Study) -> Float[Tensor, "vector d"]:
    """The mean change, then what a code of 1 of each latent adds to the tuned model less what it adds to the base."""
    mean = one.feed.moments["training"].mean[2:].float()
    if one.dictionary is None:
        # Nothing was trained because nothing changed: what rounding leaves says no words.
        return torch.zeros_like(mean)
    base, tuned = one.dictionary.directions().cpu()
    return torch.cat([mean, tuned - base])
