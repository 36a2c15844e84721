"""From sums to a Result: every place of every slice, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.engine import Subject
from finetrace.methods.activation_difference_lens import Config
from finetrace.methods.activation_difference_lens.cells import Cell, cell, pickable, place_names
from finetrace.methods.activation_difference_lens.numbers import estimates, plain
from finetrace.methods.activation_difference_lens.readout import Reader, Reading, Spot
from finetrace.methods.activation_difference_lens.result import Found, Pick, Profile, Result
from finetrace.methods.activation_difference_lens.sums import Sums
from finetrace.models import layer_index
from finetrace.stats.grouped import (
    Grouped,
    everyone,
    flip_p,
    jackknife_half,
    signal_to_noise,
    split_cosine,
    squared_norm,
    standard_error,
    without_each,
)

# Numbers of all read-outs of one result together: 32 MB.
_MOST = 2**23
# Tokens of the table that goes through the layers.
_BRIEF = 8
# The groups that choose a place, and those that say whether the choice was any good.
_PICKS, _JUDGES = slice(0, None, 2), slice(1, None, 2)


def summarise(config: Config, subject: Subject, sums: Mapping[str, Sums], lost: Tensor) -> Result:
    """sums: by kind of text. lost: int64 [slice]."""
    layer = layer_index(config.layer, subject.n_layers)
    reader = Reader(subject, config.tokens)
    read = layers_read(subject.n_layers, layer, (len(subject.slices) + 1) * len(reader.token_ids))
    shape = (subject.n_layers, subject.d_model)

    def look(slices: Iterable[int]) -> tuple[Found, dict[str, Estimate]]:
        wanted = tuple(slices)
        at = lambda place: cell(config, sums, wanted, shape, place)  # noqa: E731
        return _found(config, at, reader, layer, read), estimates(at(config.position), layer, subject.seed)

    whole, numbers = look(range(len(subject.slices)))
    parts = {name: look([i]) for i, name in enumerate(subject.slices)}
    return Result(
        numbers=numbers,
        slices={name: figures for name, (_, figures) in parts.items()},
        found={name: found for name, (found, _) in parts.items()},
        everywhere=whole,
        position=config.position,
        layer=layer,
        layers_read=read,
        token_ids=reader.token_ids,
        unscored={name: int(lost[i]) for i, name in enumerate(subject.slices)},
    )


def layers_read(n_layers: int, layer: int, numbers: int) -> np.ndarray:
    """The layers whose read-outs are kept whole, `numbers` each: all, or evenly spread ones that fit, and `layer`."""
    fit = max(1, min(n_layers, _MOST // max(1, numbers)))
    spread = np.linspace(0, n_layers - 1, fit).round().astype(np.int64)
    return np.unique(np.append(spread if fit > 1 else [], layer).astype(np.int64))


def _found(config: Config, at: Callable[[str], Cell], reader: Reader, layer: int, read: np.ndarray) -> Found:
    """at: a place's name -> its sums. One place is held at a time."""
    rows: list[tuple[str, int, int, np.ndarray]] = []
    means, best = [], _Best(0.0, "", 0)
    for place in place_names(config):
        here = at(place)
        texts = int(here.texts.sum())
        if texts:
            rows.append((place, texts, int(here.tokens.sum()), _profile(here)))
            means.append(here.sums[layer].sum(0) / texts)
            best = _better(best, here)
    fixed, judges = at(config.position), [at(best.place).half(_JUDGES)] if best.place else []
    every = fixed.sums[read].sum(1)
    spots = [Spot(fixed, layer), *(Spot(judge, best.layer) for judge in judges)]
    logits, (reading, *judged) = reader.read(every if every.any() else every[:0], spots)
    d_model = fixed.base.shape[-1]
    return Found(
        profile=_table(rows, len(fixed.base)),
        fixed=reading,
        pick=_evaluated(judges[0], best, judged[0]) if judges else None,
        layers=_layers(logits, reader, read),
        logits=logits,
        mean=(fixed.sums.sum(1) / max(1, fixed.texts.sum())).astype(np.float32),
        place_mean=np.array(means, dtype=np.float32).reshape(-1, d_model),
    )


def _profile(here: Cell) -> np.ndarray:
    """The rows of a `Profile` for one place: [quantity, layer]."""
    known, n = here.grouped, max(1, here.texts.sum())
    weights = everyone(known)
    square = squared_norm(known, weights)[..., 0]
    norms = [np.sqrt(np.maximum(s, 0.0)) for s in (square, *_bounds(known, square))]
    return np.stack(
        [
            *norms,
            standard_error(known),
            signal_to_noise(known, weights)[..., 0],
            flip_p(known),
            split_cosine(known),
            here.base_norm.sum(-1) / n,
            here.other_norm.sum(-1) / n,
        ]
    )


def _bounds(known: Grouped, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = jackknife_half(squared_norm(known, without_each(known)))
    return square - half, square + half


def _table(rows: list[tuple[str, int, int, np.ndarray]], layers: int) -> Profile:
    values = np.stack([row[3] for row in rows], 1) if rows else np.zeros((9, 0, layers))
    return Profile(
        tuple(row[0] for row in rows),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.int64),
        *values,
    )


@dataclass(frozen=True)
class _Best:
    snr: float
    place: str
    layer: int


def _better(best: _Best, here: Cell) -> _Best:
    """The larger signal to noise, on the even groups of texts."""
    if not pickable(here.place):
        return best
    half = here.half(_PICKS).grouped
    snr = signal_to_noise(half, everyone(half))[..., 0]
    if np.isnan(snr).all():
        return best
    layer = int(np.nanargmax(snr))
    return _Best(float(snr[layer]), here.place, layer) if snr[layer] > best.snr else best


def _evaluated(other: Cell, best: _Best, reading: Reading | None) -> Pick:
    """What the odd groups, `other`, say of the place and layer that the even ones chose."""
    layer = best.layer
    known, texts = other.grouped, other.texts.sum()
    weights = everyone(known)
    square = squared_norm(known, weights)[layer, 0]
    base = other.base_norm[layer].sum() / max(1, texts)
    return Pick(
        place=other.place,
        layer=layer,
        picked_on=best.snr,
        snr=plain(signal_to_noise(known, weights)[layer, 0]),
        flip_p=plain(flip_p(known)[layer]),
        norm=plain(np.sqrt(max(square, 0.0)) / base) if base else None,
        reading=reading,
    )


def _layers(logits: np.ndarray, reader: Reader, read: np.ndarray) -> Columns:
    """The best few tokens of each layer that was read."""
    if not len(logits):
        return Columns({})
    tables = [reader.top(row, _BRIEF).data for row in logits]
    columns: dict[str, np.ndarray | list[str]] = {
        "layer": np.repeat(read, [len(table["token_id"]) for table in tables]),
        "token": [text for table in tables for text in table["token"]],
    }
    rest = ("token_id", "logit")
    return Columns(
        columns | {name: np.concatenate([np.asarray(table[name]) for table in tables]) for name in rest}
    )
