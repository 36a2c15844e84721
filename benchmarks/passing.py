"""What the cases that go through the engine share: a pair, texts, and one pass of some methods over them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import models
from benchmarks.case import Preset
from finetrace.core.card import Method, discover
from finetrace.data import build_corpus, read_rows
from finetrace.data.corpus import Corpus
from finetrace.engine import Contrast, Job, Observer, Shape, make_subject, run_pass
from finetrace.models import Pair, open_pair

Observers = Mapping[tuple[str, str], Observer]


def opened(folder: Path, dtype: torch.dtype, nulls: Sequence[str] = ()) -> Pair:
    return open_pair(
        folder / "base",
        folder / "tuned",
        nulls={name: folder / name for name in nulls},
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
    ).load()


def corpus_of(pair: Pair, preset: Preset, times: int = 1) -> Corpus:
    return build_corpus(read_rows(models.texts(preset, times)), pair.tokenizer)


def cards(names: Sequence[str]) -> list[Method]:
    found, _ = discover()
    return [found[name] for name in names]


def passed(
    pair: Pair,
    corpus: Corpus,
    methods: Sequence[Method],
    contrasts: Sequence[Contrast],
    shape: Shape,
    folder: Path,
) -> dict[tuple[str, str], Observer]:
    """One pass, its journal and its observers included; not what is made of the observers afterwards."""
    journal = Path(tempfile.mkdtemp(dir=folder))
    found = run_pass(pair, corpus, _jobs(pair, corpus, methods, contrasts, journal), shape=shape)
    shutil.rmtree(journal)
    return found


def _jobs(
    pair: Pair, corpus: Corpus, methods: Sequence[Method], contrasts: Sequence[Contrast], journal: Path
) -> list[Job]:
    return [
        Job(
            card.name,
            contrast,
            card.needs(card.config()),
            lambda card=card, contrast=contrast: card.part("observe").observer(
                card.config(), make_subject(pair, corpus.slices, contrast.side, 0)
            ),
            journal / card.name / str(number),
        )
        for card in methods
        for number, contrast in enumerate(contrasts)
    ]
