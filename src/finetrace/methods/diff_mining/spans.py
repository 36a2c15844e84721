"""Windows of text that the tuned model finds more likely: sums of log p_tuned - log p_base over the texts' own tokens.

A slice in which nothing was learnt still has windows with high scores. How many is estimated from the other side
(target-decoy, Elias & Gygi 2007; with the 1 of Barber & Candes 2015): if scores that mean nothing lie symmetrically about the slice's median m, then as many
texts reach a score t by chance as have a window at or below 2m - t. Each text counts once, by its best window and by its
worst, because overlapping windows of one text are not independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.engine import Step, Subject

# A text shorter than a window is one window, if it has so many predictions.
SHORTEST = 4
# Tokens shown before and after a window.
AROUND = 16
# Scores are binned by sign and log2 of their size, 16 bins an octave from 2^-20 to 2^12 nats: a size to 4%.
_OCTAVES, _PER_OCTAVE = (-20, 12), 16
_HALF = (_OCTAVES[1] - _OCTAVES[0]) * _PER_OCTAVE
BINS = 2 * _HALF + 1
_WINDOWS, _BEST, _WORST = range(3)


@dataclass(frozen=True)
class Span:
    """A text's best window. score: its sum of log p_tuned - log p_base, nats. q: the estimated share of texts with such
    a score that have it by chance. tokens, values: the window and what is around it; a value is the log ratio of the
    prediction *of* that token, None where none was made. start, stop: where the window lies in `tokens`."""

    slice: str
    row: int
    score: float
    q: float
    start: int
    stop: int
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class _Held:
    slice: int
    score: float
    row: int
    start: int
    stop: int
    ids: Tensor
    values: Tensor


class Spans:
    """A histogram of scores per slice, and the `keep` best texts of each."""

    def __init__(self, span: int, stride: int, keep: int, slices: int) -> None:
        self._span, self._stride, self._keep = span, stride, keep
        self._histogram = torch.zeros(3, slices, BINS, dtype=torch.int64)
        self._held: list[_Held] = []
        self._least: dict[int, float] = {}

    def offer(self, step: Step, ratio: Float[Tensor, "batch pos"]) -> None:
        """A whole step. ratio: log p_tuned - log p_base of each position's next token, NaN where there is none."""
        scores, lengths = windows(
            ratio.cpu().double().numpy(), step.keep.sum(1).cpu().numpy(), self._span, self._stride
        )
        texts = np.flatnonzero(~np.isnan(scores).all(1))
        where = step.slice.cpu().numpy()
        best, worst = np.nanmax(scores[texts], 1), np.nanmin(scores[texts], 1)
        inside = ~np.isnan(scores)
        owner = np.nonzero(inside)[0]
        for kind, of, values in (
            (_WINDOWS, owner, scores[inside]),
            (_BEST, texts, best),
            (_WORST, texts, worst),
        ):
            np.add.at(self._histogram[kind].numpy(), (where[of], bin_of(values)), 1)
        for i, score in zip(texts.tolist(), best.tolist(), strict=True):
            if score > self._least.get(int(where[i]), -math.inf):
                start = int(np.nanargmax(scores[i])) * self._stride
                self._hold(step, i, score, start, lengths[i], ratio[i])
        self._trim()

    def _hold(self, step: Step, i: int, score: float, start: int, size: int, ratio: Tensor) -> None:
        """Keeps a window with what is around it. Its predictions are of the tokens one further on."""
        first, last, length = start + 1, start + 1 + size, int(step.keep[i].sum())
        begin, end = max(0, first - AROUND), min(length + 1, last + AROUND)
        values = torch.cat([ratio.new_full((1,), torch.nan), ratio[:length]])[begin:end].float().cpu()
        ids = step.ids[i, begin:end].cpu().clone()
        where, row = int(step.slice[i]), int(step.row[i])
        self._held.append(_Held(where, score, row, first - begin, last - begin, ids, values))

    def _trim(self) -> None:
        """The `keep` best of each slice; ties go to the lower corpus row. _least: the score to beat."""
        self._held.sort(key=lambda held: (held.slice, -held.score, held.row))
        ranks: dict[int, int] = {}
        kept = []
        for held in self._held:
            ranks[held.slice] = ranks.get(held.slice, 0) + 1
            if ranks[held.slice] <= self._keep:
                kept.append(held)
            if ranks[held.slice] == self._keep:
                # Not a tie's: one with the same score may be of a lower row.
                self._least[held.slice] = float(np.nextafter(held.score, -math.inf))
        self._held = kept

    def merge(self, later: Self) -> None:
        self._histogram += later._histogram
        self._held += later._held
        self._trim()

    def state(self) -> dict[str, Tensor]:
        """The histogram of slices that were seen, as in `Counts`."""
        seen = self._histogram.sum((0, 2)).nonzero()[:, 0]
        heads = [(h.slice, h.row, h.start, h.stop, len(h.ids)) for h in self._held]
        nothing = torch.zeros(0)
        return {
            "spans.seen": seen,
            "spans.histogram": self._histogram[:, seen].contiguous(),
            "spans.heads": torch.tensor(heads, dtype=torch.int64).reshape(len(heads), 5),
            "spans.score": torch.tensor([h.score for h in self._held], dtype=torch.float64),
            "spans.ids": torch.cat([h.ids for h in self._held]) if self._held else nothing.long(),
            "spans.values": torch.cat([h.values for h in self._held]) if self._held else nothing,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self._histogram, self._least = torch.zeros_like(self._histogram), {}
        self._histogram[:, state["spans.seen"]] = state["spans.histogram"]
        heads = state["spans.heads"].tolist()
        lengths = [head[4] for head in heads]
        parts = zip(
            heads,
            state["spans.score"].tolist(),
            state["spans.ids"].split(lengths),
            state["spans.values"].split(lengths),
            strict=True,
        )
        self._held = [
            _Held(h[0], score, h[1], h[2], h[3], ids.clone(), values.clone())
            for h, score, ids, values in parts
        ]

    def found(self, subject: Subject) -> tuple[Span, ...]:
        histogram = self._histogram.numpy()
        return tuple(
            Span(
                slice=subject.slices[held.slice],
                row=held.row,
                score=held.score,
                q=chance(held.score, *histogram[:, held.slice]),
                start=held.start,
                stop=held.stop,
                tokens=subject.spell(held.ids.tolist()),
                values=tuple(None if v != v else v for v in held.values.tolist()),
            )
            for held in self._held
        )

    def texts(self) -> np.ndarray:
        """int64 [slice]: texts long enough to have a window."""
        return self._histogram[_BEST].sum(1).numpy()


def windows(
    ratio: Float[np.ndarray, "text pos"], lengths: Int[np.ndarray, " text"], span: int, stride: int
) -> tuple[Float[np.ndarray, "text window"], list[int]]:
    """Sums over windows that start at 0, stride, 2 stride, ...: NaN where a window does not fit or a value is missing.

    Also how long each text's windows are: `span`, or the whole of a text that is shorter and has SHORTEST values.
    """
    texts, width = ratio.shape
    sizes = np.minimum(span, lengths)
    starts = np.arange(0, max(1, width - span + 1), stride)
    stops = np.minimum(starts + sizes[:, None], width)
    zero = np.zeros((texts, 1))
    total = np.concatenate([zero, np.nan_to_num(ratio).cumsum(1)], 1)
    missing = np.concatenate([zero, np.isnan(ratio).cumsum(1)], 1)
    each = np.arange(texts)[:, None]
    fits = (starts + sizes[:, None] <= lengths[:, None]) & (sizes >= min(SHORTEST, span))[:, None]
    fits &= missing[each, stops] == missing[each, starts]
    return np.where(fits, total[each, stops] - total[each, starts], np.nan), sizes.tolist()


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Bins of scores, in rising order; the middle one holds what is within 2^-20 nats of 0."""
    size = np.abs(scores)
    with np.errstate(divide="ignore"):
        level = np.floor((np.log2(size) - _OCTAVES[0]) * _PER_OCTAVE)
    level = np.where(size < 2.0 ** _OCTAVES[0], -1, np.clip(level, 0, _HALF - 1)).astype(np.int64)
    return _HALF + np.sign(scores).astype(np.int64) * (level + 1)


def edges() -> np.ndarray:
    """float64 [BINS + 1]: where bins begin and end; the outermost are open."""
    sizes = 2.0 ** (_OCTAVES[0] + np.arange(_HALF) / _PER_OCTAVE)
    return np.r_[-math.inf, -sizes[:0:-1], -sizes[0], sizes[0], sizes[1:], math.inf]


def chance(score: float, windows: np.ndarray, best: np.ndarray, worst: np.ndarray) -> float:
    """q: the smallest estimated share of chance among the texts called at any threshold t up to `score`, at most 1.

    At t that is (1 + texts whose worst window is at most 2m - t) / texts whose best window is at least t; the 1 keeps it
    from being too small on average (Barber & Candes 2015). t runs over the bins' edges, so targets are counted exactly,
    and decoys with the whole bin that 2m - t falls into.
    """
    bounds = edges()
    middle = int(np.searchsorted(windows.cumsum(), windows.sum() / 2))
    median = 0.0 if middle == _HALF else (bounds[middle] + bounds[middle + 1]) / 2
    called = np.arange(1, int(bin_of(np.array([score]))[0]) + 1)
    called = called[bounds[called] > median]
    if not len(called) or not np.isfinite(median):
        return 1.0
    targets = np.cumsum(best[::-1])[::-1][called]
    decoys = np.cumsum(worst)[bin_of(2 * median - bounds[called])]
    return float(min(1.0, ((1 + decoys) / np.maximum(targets, 1)).min()))
