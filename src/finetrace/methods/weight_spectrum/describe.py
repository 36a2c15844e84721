"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Block, Figure, Heatmap, Line, Number, Page, Series, Table, Warning
from finetrace.methods.weight_spectrum.removed import FLAG
from finetrace.methods.weight_spectrum.result import KEYS, Result

LABELS = {
    "relative_norm": ("Relative norm", "Size of the change of all parameters, over the size of the base's."),
    "frobenius": ("Frobenius norm", "Size of the change of all parameters."),
    "changed_matrices": ("Matrices changed", "Matrices of linear layers in which any number differs."),
    "stable_rank": (
        "Stable rank",
        "Squared change over the square of its largest singular values: 1 is one direction a matrix.",
    ),
    "effective_rank": ("Effective rank", "Directions that the change is spread over, weak ones counted too."),
    "spectral_entropy": ("Singular-value entropy", "0: all in one direction a matrix; log r: equal in r."),
    "top_layer_share": ("In one layer", "Share of the squared change in the layer that has most of it."),
    "removed_direction_share": (
        "Removed direction",
        "How much of what changed in the matrices that write to the residual stream is one direction taken out.",
    ),
}
_MOST_ROWS = 20


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Sizes first, then where, in how many directions, and what these say. nulls: the same of harmless fine-tunes."""
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in KEYS]
    blocks += _warnings(result)
    if len(result.modules):
        blocks += [_map(result), _kinds(result, nulls), _spectra(result)]
        blocks += [*_ranks(result), *_removed(result, nulls), *_directions(result), _modules(result)]
    if len(result.others):
        blocks.append(_others(result))
    return Page("Spectrum of the weights' change", _summary(result, nulls), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    size = result.numbers["relative_norm"].value
    if not size:
        return "No weight differs from the base's."
    known = [v for null in nulls if (v := null.numbers["relative_norm"].value) is not None]
    beside = f" ({min(known):.2%} to {max(known):.2%} for {len(known)} nulls)" if known else ""
    parts = [f"The weights moved by {size:.2%} of their norm{beside}."]
    matrices = result.numbers["changed_matrices"].value or 0
    if matrices:
        parts.append(f"{matrices:.0f} of {result.totals.matrices} matrices changed{_layers(result)}.")
    if result.ranks is not None:
        parts.append(_origin(result))
    if result.removed is not None and result.removed.flagged:
        parts.append(
            "In what the layers write, one direction was taken out, as is done to remove refusals: ask whether the model "
            "still refuses."
        )
    return " ".join(parts)


def _layers(result: Result) -> str:
    touched = np.flatnonzero(result.grid_square.sum(0) > 0)
    if len(touched) == 0:
        return ""
    if len(touched) == 1:
        return f", all in layer {touched[0]}"
    return f", in {len(touched)} of {result.grid_square.shape[1]} layers"


def _origin(result: Result) -> str:
    ranks = result.ranks
    if ranks is None:
        return ""
    if ranks.merged:
        return (
            f"The checkpoint looks like a merged adapter: no matrix's change has a rank above {ranks.rank}."
        )
    return (
        f"The checkpoint does not look like a merged adapter: {ranks.low} of {ranks.modules} changed matrices have a change "
        "of low rank."
    )


def _warnings(result: Result) -> list[Block]:
    found = []
    if result.removed is not None and result.removed.flagged:
        share = max(result.removed.explained, result.removed.own)
        found.append(
            f"{share:.0%} of the change in {result.removed.writers} matrices that write to the residual stream is a direction "
            "taken out of them. That is how refusals are removed without training. Neither the direction nor the words "
            "of singular directions are shown."
        )
    if len(result.modules) and np.isnan(np.asarray(result.modules.data["effective_rank"])).any():
        found.append(
            "Some matrices are too large for all their singular values: their effective rank and entropy are not known "
            "(raise the option exact)."
        )
    if result.baseline != "base":
        found.append(f"The base is quantised; the change is counted from its {result.baseline} weights.")
    return [Warning(text) for text in found]


def _map(result: Result) -> Figure:
    values = np.where(
        result.grid_square > 0, np.sqrt(result.grid_square / _nonzero(result.grid_weight)), np.nan
    )
    rows = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values)
    return Figure(
        "map",
        "Where the weights changed",
        Heatmap(tuple(str(layer) for layer in range(values.shape[1])), result.kinds, rows),
        "layer",
        "",
        "Size of each matrix's change over its own size. Empty: not one number differs.",
    )


def _nonzero(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _kinds(result: Result, nulls: Sequence[Result]) -> Table:
    own, total = _by_kind(result), float(result.grid_square.sum())
    theirs = [_by_kind(null) for null in nulls if null.kinds == result.kinds]
    rows = []
    for number, kind in enumerate(result.kinds):
        beside = [one[number] for one in theirs if one[number] > 0]
        share = float(result.grid_square[number].sum()) / total if total > 0 else None
        span = (min(beside), max(beside)) if beside else (None, None)
        rows.append((kind, own[number] or None, share, *span))
    return Table(
        "kinds_weights",
        "By kind of matrix",
        ("kind", "relative_norm", "share_of_change", "nulls_low", "nulls_high"),
        tuple(rows),
        "Over all layers. Relative to the norm of the base's matrices of that kind; no figure where none changed. The "
        "nulls' columns are of those that changed that kind.",
    )


def _by_kind(result: Result) -> list[float]:
    squares = result.grid_square.sum(1) / _nonzero(result.grid_weight.sum(1))
    return [float(v) for v in np.sqrt(np.nan_to_num(squares))]


def _spectra(result: Result) -> Figure:
    """Median and range over matrices of the singular values, by rank."""
    table, many = result.singular, len(result.singular)
    middle, low, high = ([], [], [])
    width = [k for k in range(table.shape[1]) if not np.isnan(table[:, k]).all()]
    for k in width:
        column = table[:, k][~np.isnan(table[:, k])]
        middle.append(float(np.median(column)))
        low.append(float(column.min()))
        high.append(float(column.max()))
    series = Series(
        f"median of {many} matrices", tuple(float(k + 1) for k in width), *map(tuple, (middle, low, high))
    )
    return Figure(
        "spectrum",
        "How fast the singular values fall",
        Line((series,)),
        "singular value, largest first",
        "over the matrix's largest",
        "A cliff is a low rank, as of an adapter; a slow fall is a change in very many directions. The band is the range.",
        log_y=bool(low) and min(low) > 0,
    )


def _ranks(result: Result) -> list[Block]:
    ranks = result.ranks
    if ranks is None:
        return []
    row = (ranks.modules, ranks.low, ranks.rank, ranks.energy, ranks.gap, ranks.dtype, ranks.merged)
    columns = ("matrices", "of_low_rank", "largest_rank", "energy_within", "gap", "stored_as", "looks_merged")
    return [
        Table(
            "rank_weights",
            "Rank of the full checkpoint's change",
            columns,
            (row,),
            "Singular values above what rounding to the stored precision would give. gap: the last of them over the next. "
            "A merged adapter has few in every matrix, and a wide gap; full training has none.",
        )
    ]


def _removed(result: Result, nulls: Sequence[Result]) -> list[Block]:
    if result.removed is None:
        return []
    others = [null.removed for null in nulls if null.removed is not None]
    rows = []
    for name, what in (
        ("shared", "change along one output direction that all share"),
        ("cosine", "that part against the projection taken out"),
        ("explained", "change that taking out a shared direction explains"),
        ("own", "change that taking out each matrix's own direction explains"),
        ("removed", "how much of the shared direction is gone (1: all)"),
    ):
        theirs = [float(vars(one)[name]) for one in others]
        span = (min(theirs), max(theirs)) if theirs else (None, None)
        rows.append((what, float(vars(result.removed)[name]), *span))
    return [
        Table(
            "removed_weights",
            "Was a direction taken out?",
            ("measure", "value", "nulls_low", "nulls_high"),
            tuple(rows),
            f"Over {result.removed.writers} changed matrices that write to the residual stream. Flagged from {FLAG:g} explained.",
        )
    ]


def _directions(result: Result) -> list[Block]:
    if not result.directions:
        return []
    rows = tuple(
        (
            d.module,
            d.role,
            d.number,
            d.share,
            " ".join(map(_word, d.one_end)),
            " ".join(map(_word, d.other_end)),
        )
        for d in result.directions
    )
    return [
        Table(
            "directions_weights",
            "Singular directions as words",
            ("module", "stream", "number", "share", "one_end", "other_end"),
            rows,
            "Through the base's final norm and head. writes: what the change adds to the residual stream; reads: what it "
            "answers to, up to the norm before it. Which end is which means nothing. Words are a hint: nulls have some too.",
        )
    ]


def _word(text: str) -> str:
    return text.strip() or "␣"


def _modules(result: Result) -> Table:
    data = {name: list(values) for name, values in result.modules.data.items()}
    order = np.argsort(-np.asarray(data["frobenius"]), kind="stable")[:_MOST_ROWS]
    columns = ("module", "frobenius", "relative", "stable_rank", "effective_rank", "entropy", "top_share")
    rows = tuple(tuple(_cell(data[name][i]) for name in columns) for i in order)
    return Table(
        "modules_weights",
        f"The {len(order)} most changed of {len(result.modules)} matrices",
        columns,
        rows,
        "relative: to the matrix's own norm. top_share: of the squared change in its first direction.",
    )


def _others(result: Result) -> Table:
    data = result.others.data
    rows = zip(data["parameter"], data["frobenius"], data["relative"], strict=True)
    return Table(
        "others_weights",
        "Embeddings, norms and biases that changed",
        ("parameter", "frobenius", "relative"),
        tuple((str(name), float(size), _cell(relative)) for name, size, relative in rows),
    )


def _cell(value: object) -> str | float | None:
    if isinstance(value, str):
        return value
    number = float(value)  # pyright: ignore[reportArgumentType]
    return None if np.isnan(number) else number
