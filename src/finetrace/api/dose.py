"""Nulls at the pair's dose: each null's delta scaled until its KL on ordinary text equals the pair's.

A null that moved less than the pair says little by its raw numbers; scaled to the same size on the slice `text`, it says
what a benign fine-tune *of this size* does elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from finetrace.api.plan import TUNED, null_names
from finetrace.core.card import Needs
from finetrace.core.errors import ModelError
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import run_key
from finetrace.core.shelf import Shelf
from finetrace.data import Corpus, shards
from finetrace.engine import Contrast, Job, LogitChunk, Shape, Step
from finetrace.engine.run import run_shard, with_room
from finetrace.models import Pair

SLICE = "text"
# Enough text to fix a scale to a few per cent; the figures themselves come from the whole corpus.
TOKENS = 4096
TOLERANCE = 0.02
STEPS = 6
LIMITS = (1 / 64, 16.0)
_NOWHERE = Path("unused")  # these jobs run outside the journalled pass


def dosed_contrasts(
    pair: Pair, corpus: Corpus, shape: Shape, shelf: Shelf, tell: Callable[[str], None]
) -> tuple[Contrast, ...]:
    """One contrast per null that could be scaled to the pair's dose; what could not be is told."""
    if SLICE not in corpus.slices:
        tell(f"Nulls are not dose-matched: the data has no slice `{SLICE}`.")
        return ()
    sample = _sample(corpus)
    target = _mean_kl(pair, sample, shape, TUNED, 1.0)
    found = []
    for name in null_names(pair):
        try:
            scale = _stored(pair, sample, shape, shelf, name, target)
        except ModelError as error:  # a full checkpoint or a DoRA null: its delta has no factor
            tell(f"The null {name} is not dose-matched: {error}")
            continue
        if scale is None:
            tell(f"The null {name} could not be brought to the pair's dose (KL {target:.3g} on `{SLICE}`).")
        else:
            found.append(Contrast(f"dose:{name}", name, scale=scale))
    return tuple(found)


def _sample(corpus: Corpus) -> Corpus:
    """The first texts of the slice, up to TOKENS tokens."""
    rows = np.flatnonzero(corpus.slice_of == corpus.slices.index(SLICE))
    lengths = np.cumsum([len(corpus.tokens[i]) for i in rows])
    rows = rows[: max(1, int(np.searchsorted(lengths, TOKENS)))]
    tokens = tuple(corpus.tokens[i] for i in rows)
    return dataclasses.replace(corpus, tokens=tokens, slice_of=corpus.slice_of[rows], keys=corpus.keys[rows])


def _stored(pair: Pair, sample: Corpus, shape: Shape, shelf: Shelf, name: str, target: float) -> float | None:
    """The scale, remembered beside the journals: a resumed run must use the very same one."""
    parts = {side: pair.identity(side) for side in ("base", TUNED, name)}
    key = run_key({**parts, "corpus": sample.identity, "dtype": str(pair.dtype), "shape": shape})
    path = shelf.root / ".dose" / f"{key}.json"
    if path.exists():
        return read_json(path)["scale"]
    scale = match(lambda factor: _mean_kl(pair, sample, shape, name, factor), target)
    write_json(path, {"null": name, "scale": scale, "target_kl": target})
    return scale


def match(kl_at: Callable[[float], float], target: float) -> float | None:
    """The factor at which `kl_at(factor)` is `target` within 2%, or None. KL grows about as the factor squared."""
    if not target > 0:
        return None
    factor, slope, last = 1.0, 2.0, None
    for _ in range(STEPS):
        value = kl_at(factor)
        if not (math.isfinite(value) and value > 0):
            return None
        error = math.log(value / target)
        if abs(error) <= TOLERANCE:
            return factor
        if last is not None and abs(math.log(factor / last[0])) > 1e-3:
            slope = min(4.0, max(0.5, (error - last[1]) / math.log(factor / last[0])))
        last = (factor, error)
        factor = min(LIMITS[1], max(LIMITS[0], factor * math.exp(-error / slope)))
    return None


def _mean_kl(pair: Pair, sample: Corpus, shape: Shape, side: str, scale: float) -> float:
    total = MeanKL()
    contrast = Contrast("dose", side, scale=scale)
    needs = Needs(logits=True)
    for shard in shards(sample, shape.shard_tokens):
        job = Job("dose", contrast, needs, MeanKL, journal=_NOWHERE)
        (part,), _ = with_room(
            lambda size, shard=shard, job=job: run_shard(pair, sample, shard, [job], size),
            shape.batch_size,
            pair.device,
            tell=lambda line: None,
        )
        total.merge(part)  # pyright: ignore[reportArgumentType] - the job made a MeanKL
    return total.result()


class MeanKL:
    """Mean KL(tuned || base) over all kept positions, nats per token: the dose itself, without any of its detail."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def see(self, step: Step) -> None:
        return None

    def see_logits(self, chunk: LogitChunk) -> None:
        self._sum += float(chunk.kl.double().sum())
        self._count += len(chunk.kl)

    def merge(self, later: Self) -> None:
        self._sum, self._count = self._sum + later._sum, self._count + later._count

    def state(self) -> dict[str, Tensor]:
        return {"sum": torch.tensor(self._sum, dtype=torch.float64), "count": torch.tensor(self._count)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._sum, self._count = float(state["sum"]), int(state["count"])

    def result(self) -> float:
        return self._sum / self._count if self._count else math.nan
