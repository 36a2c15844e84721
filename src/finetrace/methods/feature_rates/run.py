"""The Result of one contrast: both models' states through one SAE, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.data.roles import TEMPLATE
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.extremes import TOP, Extremes
from finetrace.dictionaries.formats import Opened, open_dictionary
from finetrace.dictionaries.latents import top_tokens
from finetrace.dictionaries.rates import Compared, Rates
from finetrace.dictionaries.reading import Tokens, tokens
from finetrace.engine import Step
from finetrace.engine.desk import Desk
from finetrace.methods.feature_rates import Config
from finetrace.methods.feature_rates.result import Passage, Result, Source
from finetrace.methods.feature_rates.sums import UNITS, Sums
from finetrace.models import layer_index

Side = Literal["base", "tuned"]
_KEPT = (
    "base", "tuned", "difference", "low", "high", "ratio", "ratio_low", "ratio_high", "p", "q", "code_difference", "code_q",
    "in_texts",
)  # fmt: skip
_WORDS = ("head", "sign", "rank", "token", "token_id", "logit")


@dataclass(frozen=True)
class Job:
    config: Config
    desk: Desk
    opened: Opened
    layer: int

    @property
    def dictionary(self) -> Dictionary:
        return self.opened.dictionary

    def counted(self, step: Step) -> Tokens:
        keep = step.keep if self.config.template else step.keep & (step.role != TEMPLATE)
        return tokens(replace(step, keep=keep), self.layer, skip=self.config.skip)


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast."""
    opened = desk.once("dictionary", lambda: _open(config, desk))
    job = Job(config, desk, opened, _layer(config, opened, desk.subject.n_layers))
    sums, rates, lost = Sums(job.dictionary), Rates(job.dictionary), 0
    texts, done = len(desk.corpus.tokens) if desk.corpus is not None else 0, 0
    for step in desk.steps([job.layer]):
        with torch.inference_mode():
            some = job.counted(step)
            sums.see(some)
            rates.see(some)
        lost += some.lost
        done += len(step.row)
        desk.advance(done, 2 * texts)
    found = rates.compared()
    features = _features(found)
    shown = pick(features, config.shown, config.q)
    changed = {"changed_share": _changed(found, config.q)}
    return Result(
        numbers=sums.estimates(desk.seed) | changed,
        slices={name: sums.estimates(desk.seed, i) for i, name in enumerate(desk.subject.slices)},
        source=_source(opened),
        layer=job.layer,
        tokens=found.tokens,
        texts=found.texts,
        features=features,
        shown=shown,
        words=_words(job, shown),
        passages=_passages(job, features, shown),
        q=config.q,
        lost=lost,
    )


def _open(config: Config, desk: Desk) -> Opened:
    found = open_dictionary(config.sae, d_model=desk.subject.d_model, scale=config.scale)
    if found.dictionary.models != 1:
        raise BadInput(
            f"feature_rates.sae is {config.sae}, a crosscoder of two models: it takes an SAE of one."
        )
    if found.origin.reads == "difference":
        raise BadInput(
            f"feature_rates.sae is {config.sae}, which was trained on tuned - base: codes of either model alone would mean "
            "nothing. It takes an SAE of one model's hidden states."
        )
    return replace(found, dictionary=found.dictionary.to(desk.pair.device))


def _layer(config: Config, opened: Opened, n_layers: int) -> int:
    """The block whose output the SAE reads: the one that its folder names, which no option may contradict."""
    origin, asked = opened.origin, config.layer
    where = f" ({origin.hook})" if origin.hook else ""
    if origin.layer is None:
        if asked is None:
            raise BadInput(
                f"The folder of {config.sae} does not say which layer it reads{where}: feature_rates.layer=12, say, is the block "
                "whose output it was trained on (0 the first)."
            )
        return layer_index(asked, n_layers)
    if origin.layer >= n_layers:
        raise BadInput(
            f"{config.sae} was trained on the output of block {origin.layer}{where}, and this pair has blocks 0 to {n_layers - 1}: "
            f"it is of another model{f', {origin.model}' if origin.model else ''}."
        )
    if asked is not None and layer_index(asked, n_layers) != origin.layer:
        raise BadInput(
            f"feature_rates.layer is {asked}, and {config.sae} was trained on the output of block {origin.layer}{where}: leave "
            "feature_rates.layer out, or name an SAE of that layer."
        )
    return origin.layer


def _source(opened: Opened) -> Source:
    origin = opened.origin
    return Source(
        origin.format, origin.name, origin.revision, origin.model, origin.hook, opened.dictionary.latents
    )


def _features(found: Compared) -> Columns:
    """Those that fire in either model."""
    fires = np.flatnonzero(found.fires)
    return Columns({"feature": fires} | {name: getattr(found, name)[fires] for name in _KEPT})


def _changed(found: Compared, q: float) -> Estimate:
    n = int(found.fires.sum())
    share = float(found.significant(q).sum()) / n if n else None
    return Estimate(share, UNITS["changed_share"], n, found.texts if n else 0)


def pick(features: Columns, count: int, q: float) -> np.ndarray:
    """Ids of the features worth showing, at most `count`: those that changed at `q` first, each by the size of its difference."""
    data = features.data
    size = np.abs(np.asarray(data["difference"]))
    changed = np.nan_to_num(np.asarray(data["q"]), nan=1.0) <= q
    order = np.lexsort((np.asarray(data["feature"]), -size, ~changed))
    return np.asarray(data["feature"])[order[size[order] > 0]][:count].astype(np.int64)


def _words(job: Job, shown: np.ndarray) -> Columns:
    vectors = job.dictionary.directions()[0].cpu()[torch.from_numpy(shown)]
    found = top_tokens(vectors, job.desk.subject, job.config.tokens).data
    return Columns({"feature": shown[np.asarray(found["vector"])]} | {name: found[name] for name in _WORDS})


def _passages(job: Job, features: Columns, shown: np.ndarray) -> tuple[Passage, ...]:
    """A second reading: each feature in the model in which it fires more."""
    desk, keep = job.desk, job.config.passages
    texts = len(desk.corpus.tokens) if desk.corpus is not None else 0
    if not keep or not len(shown):
        desk.advance(2 * texts, 2 * texts)
        return ()
    at = np.searchsorted(np.asarray(features.data["feature"]), shown)
    more = np.asarray(features.data["difference"])[at] > 0
    chosen: dict[Side, np.ndarray] = {"tuned": shown[more], "base": shown[~more]}
    # Only the strongest are shown, for which no largest code is needed.
    lists: dict[Side, Extremes] = {
        side: Extremes(job.dictionary, side, ids, np.zeros(len(ids)), keep=keep)
        for side, ids in chosen.items()
        if len(ids)
    }
    done = 0
    for step in desk.steps([job.layer]):
        with torch.inference_mode():
            some = job.counted(step)
            for one in lists.values():
                one.see(step, some)
        done += len(step.row)
        desk.advance(texts + done, 2 * texts)
    found = {
        (one.latent, n): _passage(desk, side, one)
        for side, held in lists.items()
        for n, one in enumerate(held.passages())
        if one.bin == TOP
    }
    return tuple(found[key] for latent in shown.tolist() for key in found if key[0] == latent)


def _passage(desk: Desk, side: str, one: Any) -> Passage:
    return Passage(
        feature=one.latent,
        side=side,
        slice=desk.subject.slices[one.slice],
        row=one.row,
        value=one.score,
        tokens=desk.subject.spell(list(one.ids)),
        values=one.values,
    )
