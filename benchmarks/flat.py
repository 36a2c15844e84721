"""The case `flat`: memory of a pass, and of a dictionary trained straight from one, on 1, 4 and 16 times as many tokens.

Each size is measured in a process of its own, after one call that is not counted. The two caches of the CPU's matrix library
are kept small there: they hold code and buffers for every shape of product that was seen, up to 1,024 each, and most batches
have a shape of their own; that is memory which grows with what is read until all shapes have been seen, and it is no state of
ours. *stored* keeps both sides' states of one
layer and takes a covariance of their difference at the end: it shows that the measure sees what grows. The texts themselves,
as token ids, are in memory before; `notes` says how large they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from benchmarks.passing import cards, corpus_of, opened, passed
from finetrace.data import padded_tokens
from finetrace.data.corpus import Corpus
from finetrace.dictionaries.feed import Feed
from finetrace.dictionaries.training import Trained, Training, train
from finetrace.engine import PAIR, Contrast, Shape, make_subject
from finetrace.engine.desk import Desk
from finetrace.models import Pair

METHODS = ("activation_analysis", "pca")
TIMES = (1, 4, 16)
_CONTRAST = Contrast(PAIR, "tuned")
_LAYER = 1.0
_PER_D, _K, _BATCH = 2, 16, 256
# Of a shuffle buffer, in bytes, at most: far fewer rows than there are.
_MEMORY = 2**20
_TOKENS_PER_D = 8
# Of oneDNN, and of PyTorch's bridge to it: products are the same, and are prepared more often.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "8"}
# What a process holds may grow by so much of what storing would take.
MOST = 0.05


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    texts_at = partial(_times, preset)

    @cache
    def pair() -> Pair:
        return opened(folder, dtype)

    @cache
    def corpus(times: int) -> Corpus:
        return corpus_of(pair(), preset, texts_at(times))

    # As many shards as there are times: what a shard holds is held once.
    shape = Shape(batch_size=preset.batch, shard_tokens=corpus(1).n_tokens)

    def reading(times: int) -> Work:
        texts, both = corpus(times), cards(METHODS)
        return lambda: passed(pair(), texts, both, [_CONTRAST], shape, folder)

    def training(times: int) -> Work:
        return partial(_trained, pair(), corpus(times), shape, min(_MEMORY, stored // 4))

    def storing(times: int) -> Work:
        return partial(_stored, pair(), corpus(times), shape)

    flop = 2 * preset.trunk_flop(padded_tokens(corpus(1), preset.batch))
    stored = 2 * preset.d * corpus(1).scored * 4

    def floor() -> Work:
        padded = padded_tokens(corpus(1), preset.batch)
        shapes = [(padded, i, o) for _ in range(2 * preset.layers) for i, o in preset.block_shapes()]
        return products(shapes, dtype)

    makers = {"pass": reading, "trained": training, "stored": storing}
    arms = {name: Arm(partial(make, 1), flop, {"states": stored}) for name, make in makers.items()}
    longer = {
        f"{name}_x{times}": Arm(partial(make, times), times * flop, {"states": times * stored})
        for name, make in makers.items()
        for times in TIMES[1:]
    }
    return Case(
        "flat",
        arms | {"floor": Arm(floor, flop)},
        "work",
        goal,
        tuple(makers),
        reference="pass",
        longer=longer,
        environment=CACHES,
        notes=lambda: {
            "tokens": [corpus(times).scored for times in TIMES],
            "megabytes_of_texts": [round(_held(corpus(times)) / 1e6, 3) for times in TIMES],
            "megabytes_of_states": [round(times * stored / 1e6, 1) for times in TIMES],
        },
    )


def _times(preset: Preset, times: int) -> int:
    """So many times the preset's texts; more where they have fewer than eight tokens a dimension."""
    expected = preset.texts * preset.length * 3 // 4
    return times * -(-_TOKENS_PER_D * preset.d // expected)


def _held(corpus: Corpus) -> int:
    return sum(one.ids.nbytes + one.role.nbytes for one in corpus.tokens) + corpus.keys.nbytes


def _desk(pair: Pair, corpus: Corpus, shape: Shape, folder: Path) -> Desk:
    subject = make_subject(pair, corpus.slices, _CONTRAST.side, 0)
    return Desk(pair, _CONTRAST.side, 1.0, subject, 0, folder, {}, {}, corpus=corpus, shape=shape)


def _trained(pair: Pair, corpus: Corpus, shape: Shape, memory: int) -> Trained:
    """An epoch of an SAE on the difference: one reading for the moments, one for the sample, one to train."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        desk = _desk(pair, corpus, shape, Path(folder))
        feed = Feed(desk, _LAYER, "difference", template=True, memory=memory)
        if feed.fits:
            raise RuntimeError("the states fit in memory: this would measure something else")
        rows, latents = feed.moments["training"].tokens, _PER_D * pair.d_model
        batch = min(_BATCH, rows // 4, memory // (4 * pair.d_model))
        training = Training(latents=latents, k=_K, batch=batch, steps=rows // batch, validate=2)
        return train(feed.training(batch), (1, pair.d_model), training, feed.validation)


@torch.inference_mode()
def _stored(pair: Pair, corpus: Corpus, shape: Shape) -> Tensor:
    kept: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        desk = _desk(pair, corpus, shape, Path(folder))
        layer = pair.n_layers - 1
        for step in desk.steps((layer,)):
            kept.append(torch.stack([side[step.keep].float() for side in step.hidden(layer)], 1))
    base, tuned = torch.cat(kept).unbind(1)
    return torch.cov((tuned - base).T)


def growth(figures: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Peaks of a process in MB at each size; and the growth from the smallest to the largest, over that of the states."""
    peaks = [figures["arms"][name]["memory"]["peak"]]
    longer = figures.get("longer", {})
    peaks += [longer[key]["peak"] for times in TIMES[1:] if (key := f"{name}_x{times}") in longer]
    if len(peaks) != len(TIMES) or None in peaks:
        return None
    states = figures["notes"]["megabytes_of_states"]
    share = (peaks[-1] - peaks[0]) / (states[-1] - states[0])
    return {"peak": peaks, "of_states": round(share, 4), "times": round(peaks[-1] / peaks[0], 3)}


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: growth(figures, name) for name in ("pass", "trained", "stored")}
    ours = [found[name] for name in ("pass", "trained")]
    return {
        "name": f"memory flat in the number of tokens: grows by <= {MOST} of what storing the states takes",
        "measured": found,
        "reached": all(one["of_states"] <= MOST for one in ours if one) if all(ours) else None,
    }
