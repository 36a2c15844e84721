"""Nulls at the pair's dose: each null's delta scaled until its KL on ordinary text equals the pair's.

A null that moved less than the pair says little by its raw numbers; scaled to the same size on the slice `text`, it says
what a benign fine-tune *of this size* does elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from finetrace.api.plan import BASE, TUNED, null_names
from finetrace.core.errors import ModelError
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import run_key
from finetrace.core.shelf import Shelf
from finetrace.data import Corpus
from finetrace.engine import Contrast, Shape
from finetrace.engine.forced import Forced, compared, final_states
from finetrace.models import Pair

SLICE = "text"
# Enough text to fix a scale to a few per cent; the figures themselves come from the whole corpus.
TOKENS = 4096
TOLERANCE = 0.02
STEPS = 6
LIMITS = (1 / 64, 16.0)


def dosed_contrasts(
    pair: Pair, corpus: Corpus, shape: Shape, shelf: Shelf, tell: Callable[[str], None]
) -> tuple[Contrast, ...]:
    """One contrast per null that could be scaled to the pair's dose; what could not be is told."""
    if SLICE not in corpus.slices:
        tell(f"Nulls are not dose-matched: the data has no slice `{SLICE}`.")
        return ()
    sample = _sample(corpus)
    dose = Dose(pair, sample, shape.batch_size)
    target = dose.of(TUNED)
    found = []
    for name in null_names(pair):
        try:
            scale = _stored(pair, sample, shape, shelf, name, target, dose)
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


def _stored(
    pair: Pair, sample: Corpus, shape: Shape, shelf: Shelf, name: str, target: float, dose: Dose
) -> float | None:
    """The scale, remembered beside the journals: a resumed run must use the very same one."""
    parts = {side: pair.identity(side) for side in ("base", TUNED, name)}
    key = run_key({**parts, "corpus": sample.identity, "dtype": str(pair.dtype), "shape": shape})
    path = shelf.aside(".dose") / f"{key}.json"
    if path.exists():
        return read_json(path)["scale"]
    scale = match(lambda factor: dose.of(name, factor), target)
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


class Dose:
    """Mean KL(side || base) over all kept positions of the sample, nats per token, at a factor on the side's change. The
    base is read once."""

    def __init__(self, pair: Pair, sample: Corpus, batch_size: int) -> None:
        self._pair, self._batch_size = pair, batch_size
        # The last token of a text is predicted and has no successor.
        self._texts = [Forced(tuple(one.ids[:-1].tolist()), len(one) - 1) for one in sample.tokens]
        self._base = self._states(BASE, 1.0)

    def of(self, side: str, scale: float = 1.0) -> float:
        total, other = 0.0, self._states(side, scale)
        for chunk in compared(self._pair, side, self._base, other, scale=scale):
            total += float(chunk.divergences.kl.double().sum())
        return total / len(other) if len(other) else math.nan

    def _states(self, side: str, scale: float) -> Tensor:
        return final_states(self._pair, side, self._texts, scale=scale, batch_size=self._batch_size)
