"""The Result of one contrast: changes read, a dictionary trained on them, and what it says of texts that it did not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.dictionaries.findings import IDENTICAL, Passage
from finetrace.dictionaries.labelled_latents import labels_of
from finetrace.dictionaries.study import Latents, Study, fitted, latents_of, read_again, study
from finetrace.dictionaries.sums import nothing
from finetrace.dictionaries.words import Words, no_words, words
from finetrace.engine.desk import Desk
from finetrace.methods.sae_difference import KEYS, Config
from finetrace.methods.sae_difference.figures import Sums
from finetrace.methods.sae_difference.result import Result


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast."""
    with torch.no_grad():
        one = study("sae_difference", config, desk, "difference")
        latents = latents_of(one, desk, config.shown)
        if not one.measurable:
            return _result(config, desk, one, latents, None, ())
        sums = Sums(one.dictionary, constant_part(one), _base_mean(one))
        passages = read_again(one, desk, latents, sums.see, config.passages, config.examples)
        return _result(config, desk, one, latents, sums, passages)


def constant_part(one: Study) -> Float[Tensor, " d"]:
    """What is written at every token: by the dictionary, or by a change that is the same everywhere; nothing by none."""
    some = one.dictionary
    if some is not None:
        return some.decode(torch.zeros(1, some.latents, device=some.encoder.device))[0, 0].cpu()
    mean = one.feed.moments["training"].mean[2].float()
    return torch.zeros_like(mean) if one.reason == IDENTICAL else mean


def _base_mean(one: Study) -> Float[Tensor, " d"]:
    both = list(one.feed.moments.values())
    return torch.stack([part.total[0] for part in both]).sum(0) / max(1, sum(part.tokens for part in both))


def _result(
    config: Config,
    desk: Desk,
    one: Study,
    latents: Latents,
    sums: Sums | None,
    passages: tuple[Passage, ...],
) -> Result:
    feed, said = one.feed, no_words()
    if sums is not None:
        said = _words(config, desk, one, latents, sums.constant)

    def figures(where: int | None) -> dict[str, Estimate]:
        return sums.estimates(desk.seed, where) if sums is not None else nothing(KEYS)

    return Result(
        numbers=figures(None),
        slices={name: figures(i) for i, name in enumerate(desk.subject.slices)},
        layer=feed.layer,
        rows=feed.moments["training"].tokens,
        held=feed.moments["held out"].tokens,
        reason=one.reason,
        fitted=fitted(one.trained, ("unexplained",)) if one.trained is not None else None,
        latents=latents.table,
        shown=latents.shown,
        words=said.table,
        token_ids=said.token_ids,
        peaks=said.peaks,
        reach=said.reach,
        passages=passages,
        labels=labels_of(one, desk, latents, config.labels),
        lost=feed.lost,
    )


def _words(config: Config, desk: Desk, one: Study, latents: Latents, constant: Float[Tensor, " d"]) -> Words:
    vectors, sizes = constant[None], [float(constant.double().norm())]
    if one.dictionary is not None:
        vectors = torch.cat([vectors, one.dictionary.directions()[0].cpu()])
        sizes += np.sqrt(latents.column("energy")).tolist()
    return words(desk.subject, vectors, np.array(sizes), latents.shown, config.tokens)
