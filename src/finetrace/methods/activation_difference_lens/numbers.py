"""The headline figures of one place at one layer, with intervals over the texts."""

from __future__ import annotations

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.methods.activation_difference_lens.cells import Cell
from finetrace.stats.grouped import (
    Grouped,
    everyone,
    group_weights,
    jackknife_interval,
    signal_to_noise,
    split_cosine,
    squared_norm,
    widened,
    without_each,
)

KEYS = ("difference_norm", "split_half_cosine", "snr")
UNITS = {"difference_norm": "of the base's norm", "split_half_cosine": "cosine", "snr": "times noise"}
_REPLICATES = 1000


def plain(value: float | np.floating) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if np.isfinite(value) else None


def estimates(here: Cell, layer: int, seed: int) -> dict[str, Estimate]:
    """The figures of `KEYS`. Intervals leave out a group of texts at a time; they cover the choice of texts."""
    whole = here.grouped
    known = Grouped(whole.gram[layer], whole.square[layer], here.texts)
    tokens, texts = int(here.tokens.sum()), int(here.texts.sum())

    def figure(
        key: str,
        value: float | None,
        interval: tuple[float, float] | None = None,
        drawn: np.ndarray | None = None,
    ) -> Estimate:
        low, high = interval or (None, None)
        return Estimate(value, UNITS[key], tokens, texts, low, high, drawn)

    share = _share(known, here.base_norm[layer], everyone(known))
    value = plain(share[0])
    if value is None:
        return {key: figure(key, None) for key in KEYS}
    left_out = _share(known, here.base_norm[layer], without_each(known))
    interval = jackknife_interval(value, left_out)
    norm = figure(
        "difference_norm",
        _root(value),
        interval and (_root(interval[0]), _root(interval[1])),
        _replicates(known, here.base_norm[layer], seed),
    )
    return {
        "difference_norm": norm,
        "split_half_cosine": figure("split_half_cosine", *_cosine(known)),
        "snr": figure("snr", *_snr(known)),
    }


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0)))


def _share(known: Grouped, base_norm: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """|mean difference|^2 over the square of the base's mean norm, [weight]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weights @ base_norm) / (weights @ known.texts)
        return squared_norm(known, weights) / np.square(mean)


def _replicates(known: Grouped, base_norm: np.ndarray, seed: int) -> np.ndarray | None:
    """Bootstrap over groups of texts, aligned between contrasts; NaN where a draw has no norm."""
    if known.groups < 2:
        return None
    weights = group_weights(len(known.texts), replicates=_REPLICATES, seed=seed)
    square = _share(known, base_norm, weights)
    return widened(np.sqrt(np.maximum(square, 0.0)), known.groups, int(known.texts.sum()))


def _cosine(known: Grouped) -> tuple[float | None, tuple[float, float] | None]:
    value = plain(float(split_cosine(known)))
    if value is None:
        return None, None
    left_out = np.array([split_cosine(known, keep) for keep in without_each(known)])
    found = jackknife_interval(value, left_out)
    return value, found and (max(-1.0, found[0]), min(1.0, found[1]))


def _snr(known: Grouped) -> tuple[float | None, tuple[float, float] | None]:
    """The interval is made in the log: a ratio of two sums of squares is skewed."""
    value = plain(signal_to_noise(known, everyone(known))[0])
    left_out = signal_to_noise(known, without_each(known))
    if value is None or value <= 0 or not (np.isfinite(left_out) & (left_out > 0)).all():
        return value, None
    found = jackknife_interval(float(np.log(value)), np.log(left_out))
    return value, found and (float(np.exp(found[0])), float(np.exp(found[1])))
