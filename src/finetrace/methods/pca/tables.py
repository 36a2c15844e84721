"""The page's tables: directions and their words beside the nulls', layers, slices, and what is apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.core.result import Columns
from finetrace.methods.pca import KEYS
from finetrace.methods.pca.ranking import most
from finetrace.methods.pca.result import Layer, Result

_SHOWN = 8


def plain(value: float | np.floating | None) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if value is not None and np.isfinite(value) else None


def called(direction: int) -> str:
    return "mean" if direction == 0 else f"component {direction}"


def shares(layer: Layer) -> np.ndarray:
    """Of the change's mean squared norm, by direction: the mean's own part, then the components'."""
    return layer.variance / layer.square if layer.square else np.full(len(layer.variance), np.nan)


def shared_with(layer: Layer, nulls: Sequence[Layer]) -> np.ndarray | None:
    """How much of each direction lies within the directions of a null: the largest squared length of its projection, [direction].
    None without nulls that changed."""
    spans = [np.linalg.qr(null.directions.astype(np.float64).T)[0] for null in nulls if null.directions.any()]
    if not spans:
        return None
    return np.max([np.square(layer.directions @ span).sum(1) for span in spans], axis=0)


def directions_table(result: Result, nulls: Sequence[Result], at: int) -> Table:
    layer, rows = result.layers[at], []
    parts, theirs = shares(layer), shared_with(layer, [null.layers[at] for null in nulls])
    for i in range(len(layer.directions)):
        size = np.sqrt(layer.variance[i] / layer.base_square) if layer.base_square else np.nan
        times = layer.variance[i] / layer.base_variance[i] if layer.base_variance[i] > 0 else np.nan
        figures = (parts[i], size, times, layer.stability[i], None if theirs is None else theirs[i])
        words = [_joined(layer.words, direction=i, end=end) for end in (1, -1)]
        rows.append((i, *(plain(value) for value in figures), *words))
    columns = ("direction", "share", "size", "times_base", "halves", "in_nulls", "tokens_up", "tokens_down")
    note = (
        "0: the mean; then the components. share: of the change's mean squared norm, the mean's own part first. size: root mean square, of the base's spread. "
        "times_base: its variance over the base's along it. halves: |cosine| between the two halves of the texts, each with "
        "its own direction. in_nulls: how much of it lies within the directions of the null that has most of it, 0 to 1. The "
        "two ends of a component are equals: its sign means nothing. The first few alone are read as words."
    )
    return Table(f"directions_{at}", f"Directions at layer {layer.layer}", columns, tuple(rows), note)


def tokens_table(result: Result, nulls: Sequence[Result], at: int) -> Table:
    layer, theirs = result.layers[at], most(nulls, at)
    words = layer.words.data
    rows = []
    for i in range(len(layer.words)):
        column = int(np.searchsorted(result.token_ids, words["token_id"][i]))
        rows.append(
            (
                int(words["direction"][i]),
                int(words["end"][i]),
                str(words["token"][i]),
                int(words["token_id"][i]),
                float(words["logit"][i]),
                None if theirs is None else float(theirs[column]),
                int(words["other_rank"][i]),
            )
        )
    columns = ("direction", "end", "token", "token_id", "logit", "nulls", "other_rank")
    note = (
        "Each direction (0: the mean) through the base's final norm and head, centred; end: 1 up, -1 down. nulls: the largest logit of that token along any "
        f"direction that was read of {len(nulls)} nulls. other_rank: place in the order of the tuned model's own norm and head."
    )
    return Table(
        f"tokens_{at}", f"Words of the directions at layer {layer.layer}", columns, tuple(rows), note
    )


def nulls_table(nulls: Sequence[Result], at: int) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        layer = null.layers[at]
        parts = shares(layer)
        for i in range(len(layer.logits)):
            words = [_joined(layer.words, direction=i, end=end) for end in (1, -1)]
            rows.append((number + 1, i, plain(parts[i]), plain(layer.stability[i]), *words))
    columns = ("null", "direction", "share", "halves", "tokens_up", "tokens_down")
    return Table(
        f"null_directions_{at}",
        "The nulls' own directions",
        columns,
        tuple(rows),
        "Read in the same way; 0: the mean.",
    )


def layers_table(result: Result) -> Table:
    rows = []
    for layer in result.layers:
        parts = shares(layer)
        size = np.sqrt(layer.square / layer.base_square) if layer.square and layer.base_square else None
        overlap = layer.overlap[-1] if len(layer.overlap) else None
        figures = (size, parts[0], parts[1:].sum(), parts[1] if len(parts) > 1 else None, overlap)
        rows.append((layer.layer, layer.tokens, *(plain(value) for value in figures), *layer.participation))
    columns = (
        "layer", "counted", "size", "mean_share", "components_share", "first_share", "overlap",
        "spread_change", "spread_base", "spread_tuned",
    )  # fmt: skip
    note = (
        "size: root mean square of the change over the base's spread. overlap: between the spaces that the two halves' "
        "components span, 1 for the same. spread: over how many directions the variance lies (participation ratio)."
    )
    return Table("layers", "By layer", columns, tuple(rows), note)


def slices_table(result: Result) -> Table:
    keys = [key for key, _ in KEYS]
    rows = []
    for name, figures in result.slices.items():
        first = figures[keys[0]]
        rest = (figures[key].value for key in keys[1:])
        rows.append((name, first.value, first.low, first.high, *rest, first.n, first.clusters))
    columns = ("slice", keys[0], "low", "high", *keys[1:], "counted", "n_texts")
    note = (
        f"At layer {result.layers[0].layer}; each text along the directions of the other half of all texts. low, high: a 95% "
        f"interval over texts of {keys[0]}."
    )
    return Table("slices", "By slice", columns, tuple(rows), note)


def slice_words(result: Result) -> Table:
    words = result.layers[0].by_slice
    found: dict[str, list[int]] = {}
    for i in range(len(words)):
        found.setdefault(str(words.data["slice"][i]), []).append(i)
    rows = []
    for name, at in found.items():
        size = float(words.data["size"][at[0]])
        rows.append((name, size, *(_joined(words, slice=name, end=end) for end in (1, -1))))
    columns = ("slice", "size", "tokens_up", "tokens_down")
    note = "The mean change of each slice through the base's head. size: its norm over the base's root mean squared norm."
    return Table("slice_means", "The mean change, slice by slice", columns, tuple(rows), note)


def apart_table(result: Result) -> Table:
    """One row of numbers alone: where texts are restricted, a cell of words in a table of all slices is hidden."""
    data, columns = result.apart.data, []
    row: list[Cell] = []
    for i, place in enumerate(data["place"]):
        if data["tokens"][i]:
            columns += [f"{place}_{name}" for name in ("counted", "change", "state")]
            row += [int(data["tokens"][i]), float(data["change"][i]), float(data["base"][i])]
    note = (
        "Root mean squared norms of the change and of the base's states, of first tokens, of what the template adds and of the rest. "
        "The first two are in no direction and no number: attention sinks there have norms that would outweigh all else."
    )
    return Table("apart", "What is left out", tuple(columns), (tuple(row),) if row else (), note)


def steered_table(result: Result) -> Table:
    data = result.steered.data
    rows: list[tuple[Cell, ...]] = [
        (
            called(int(data["direction"][i])) if float(data["times"][i]) else "none",
            float(data["times"][i]),
            str(data["side"][i]),
            str(data["slice"][i]),
            int(data["row"][i]),
            str(data["prompt"][i]),
            str(data["text"][i]),
        )
        for i in range(len(result.steered))
    ]
    columns = ("direction", "times", "side", "slice", "row", "prompt", "text")
    note = (
        f"Greedy, with the direction added after layer {result.layers[0].layer} at every token: times its own size (root mean "
        "square along a component, the norm of the mean). It shows what a direction can do, not what the fine-tune does."
    )
    return Table("steered", "Written with a direction added", columns, tuple(rows), note)


def _joined(words: Columns, **where: object) -> str | None:
    """The first few tokens of the rows that match; None for a direction that was not read."""
    data = words.data
    chosen = [i for i in range(len(words)) if all(data[name][i] == value for name, value in where.items())]
    tokens = [str(data["token"][i]) for i in chosen[:_SHOWN]]
    return " · ".join(token.strip() or repr(token) for token in tokens) or None
