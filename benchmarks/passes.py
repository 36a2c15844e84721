"""The case `pass`: `kl` on the pair, the noise floor and four nulls, in one pass or as so many separate ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import models, peer
from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from finetrace.data import batches, build_corpus, padded_tokens, read_rows, shards
from finetrace.data.corpus import Corpus
from finetrace.engine import PAIR, SELF, Contrast, Job, Shape, make_subject, run_pass
from finetrace.engine.run import ECHO_COLUMNS
from finetrace.methods.kl import METHOD, Config
from finetrace.methods.kl.observe import observer
from finetrace.models import Pair, open_pair

_NULLS = tuple(f"null_{i}" for i in range(models.NULLS))
CONTRASTS = (
    Contrast(PAIR, "tuned"),
    Contrast(SELF, "base", echo=True),
    *(Contrast(f"null:{name}", name) for name in _NULLS),
)


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    corpus = _corpus(preset, folder)
    padded, scored = padded_tokens(corpus, preset.batch), corpus.scored
    n, sides = len(CONTRASTS), len(CONTRASTS) + 1
    theirs = 2 * n * (preset.trunk_flop(padded) + preset.head_flop(padded))
    # The echo is some columns wider.
    wider = preset.trunk_flop(ECHO_COLUMNS * sum(len(rows) for rows in _rows(corpus, preset)))
    ours = sides * (preset.trunk_flop(padded) + preset.head_flop(scored)) + wider
    shapes = [(padded, i, o) for _ in range(sides * preset.layers) for i, o in preset.block_shapes()]
    shapes += [(scored, preset.d, preset.vocab)] * sides
    arms = {
        "peer": Arm(lambda: _separate(preset, dtype, folder), theirs),
        "ours": Arm(lambda: _together(preset, dtype, folder), ours),
        "ours_compiled": Arm(lambda: _together(preset, dtype, folder, compiled=True), ours),
        "floor": Arm(lambda: products(shapes, dtype), ours - wider),
    }
    return Case("pass", arms, "work", goal, ("ours",))


def _corpus(preset: Preset, folder: Path) -> Corpus:
    from transformers import AutoTokenizer

    return build_corpus(read_rows(models.texts(preset)), AutoTokenizer.from_pretrained(folder / "base"))


def _rows(corpus: Corpus, preset: Preset) -> list[torch.Tensor]:
    return [batch.row for shard in shards(corpus) for batch in batches(corpus, shard, preset.batch)]


def _separate(preset: Preset, dtype: torch.dtype, folder: Path) -> Work:
    """A pass of its own for every contrast, through two whole models; the adapters are switched for free."""
    from peft import PeftModel

    base, corpus = models.plain(folder / "base", dtype), _corpus(preset, folder)
    tuned: Any = PeftModel.from_pretrained(
        models.plain(folder / "base", dtype),
        str(folder / "tuned"),
        adapter_name="tuned",
        autocast_adapter_dtype=False,
    )
    for name in _NULLS:
        tuned.load_adapter(str(folder / name), adapter_name=name, autocast_adapter_dtype=False)
    tuned.eval()
    cut = [batch for shard in shards(corpus) for batch in batches(corpus, shard, preset.batch)]

    def work() -> None:
        for contrast in CONTRASTS:
            if contrast.label != SELF:
                tuned.set_adapter(contrast.side)
            other = base if contrast.label == SELF else tuned
            for batch in cut:
                peer.two_model_pass(base, other, batch.ids, batch.attention)

    return work


def _together(preset: Preset, dtype: torch.dtype, folder: Path, *, compiled: bool = False) -> Work:
    """One pass, its journal and its observers included."""
    pair = open_pair(
        folder / "base",
        folder / "tuned",
        nulls={name: folder / name for name in _NULLS},
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
    ).load()
    corpus, shape = _corpus(preset, folder), Shape(batch_size=preset.batch, compile=compiled)

    def work() -> None:
        journal = Path(tempfile.mkdtemp(dir=folder))
        run_pass(pair, corpus, _jobs(pair, corpus, journal), shape=shape)
        shutil.rmtree(journal)

    return work


def _jobs(pair: Pair, corpus: Corpus, journal: Path) -> list[Job]:
    config = Config()
    return [
        Job(
            METHOD.name,
            contrast,
            METHOD.needs(config),
            lambda contrast=contrast: observer(config, make_subject(pair, corpus.slices, contrast.side, 0)),
            journal / str(number),
        )
        for number, contrast in enumerate(CONTRASTS)
    ]


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The goal is of six methods (the case `six`): one method on six contrasts shares less."""
    arms = figures["arms"]
    best = max(
        (name for name in arms if name.startswith("ours")), key=lambda name: arms[name]["ratio"]["median"]
    )
    return {
        "name": "six methods on one corpus: >= 2.5 times the peer's schedule (here: one method on six contrasts)",
        "measured": {best: arms[best]["ratio"]},
        "bound": round(arms["peer"]["flop"] / arms["ours"]["flop"], 2),
        "reached": arms[best]["ratio"]["median"] >= 2.5,
    }
