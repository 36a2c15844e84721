"""The page's tables: by slice and by layer, beside the nulls; first tokens; norms out of line; spaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.methods.activation_analysis.estimates import plain
from finetrace.methods.activation_analysis.figures import QUANTITIES
from finetrace.methods.activation_analysis.result import Result
from finetrace.methods.activation_analysis.spaces import Space
from finetrace.methods.activation_analysis.summarise import MEDIAN, OUTLYING, QUANTILES

_RELATIVE, _BASE, _TUNED = (QUANTITIES.index(key) for key in ("relative_norm", "base_norm", "tuned_norm"))
_NAMES = ("q05", "median", "q95", "q99", "largest")


def slices_table(result: Result) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in result.slices.items():
        first = figures["relative_norm"]
        values = [figure.value for figure in figures.values()]
        rows.append((name, values[0], first.low, first.high, *values[1:], first.n, first.clusters))
    keys = list(next(iter(result.slices.values()), {}))
    columns = ("slice", *keys[:1], "low", "high", *keys[1:], "n_tokens", "n_texts")
    note = (
        f"At layer {result.layer}, first tokens apart. low, high: a 95% interval over texts of relative_norm."
    )
    return Table("slices", "By slice", columns, tuple(rows), note)


def _range(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = [v for v in values if v is not None]
    return (min(known), max(known)) if known else (None, None)


def layers_table(result: Result, nulls: Sequence[Result]) -> Table:
    whole, rows = result.everywhere, []
    for layer, mean in enumerate(whole.mean):
        theirs = [plain(null.everywhere.mean[layer, _RELATIVE]) for null in nulls]
        interval = (plain(whole.low[layer, _RELATIVE]), plain(whole.high[layer, _RELATIVE]))
        spread = [plain(v) for v in whole.quantiles[layer, :, _RELATIVE]]
        rest = [plain(v) for q, v in enumerate(mean) if q != _RELATIVE]
        cka = plain(whole.cka[layer])
        rows.append((layer, plain(mean[_RELATIVE]), *interval, *_range(theirs), *spread, *rest, cka))
    columns = (
        "layer",
        "relative_norm",
        "low",
        "high",
        "nulls_low",
        "nulls_high",
        *_NAMES,
        *(key for key in QUANTITIES if key != "relative_norm"),
        "cka_distance",
    )
    shares = ", ".join(f"{share:g}" for share in QUANTILES)
    note = (
        f"All slices together, first tokens apart: {whole.tokens:,} tokens of {whole.texts:,} texts. low, high: 95% over texts. "
        f"The next five are of single tokens' relative norms, at shares {shares}, within {result.sketch_error:.1%}. "
        f"{_k(nulls)}"
    )
    return Table("layers", "By layer", columns, tuple(rows), note)


def _k(nulls: Sequence[Result]) -> str:
    return f"Smallest and largest of {len(nulls)} nulls." if nulls else "No nulls to compare with."


def first_table(result: Result) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in result.first.items():
        relative, base, rest = (
            figures["relative_norm"],
            figures["base_norm"].value,
            result.slices[name]["base_norm"].value,
        )
        times = base / rest if base is not None and rest else None
        values = [figure.value for figure in figures.values()]
        rows.append((name, values[0], relative.low, relative.high, *values[1:], times, relative.n))
    columns = ("slice", *QUANTITIES[:1], "low", "high", *QUANTITIES[1:], "times_the_others", "n")
    note = (
        f"Position 0 alone, at layer {result.layer}; it is in no other figure but the map by position. times_the_others: its "
        "norm in the base over that of the other tokens. Where every text begins with the same token, these states are all the "
        "same, and the interval has no width."
    )
    return Table("first", "First tokens, apart", columns, tuple(rows), note)


def outliers_table(result: Result) -> Table:
    whole, rows = result.everywhere, []
    for layer in range(len(whole.mean)):
        row: list[Cell] = [layer]
        for side, q in enumerate((_BASE, _TUNED)):
            largest = plain(whole.quantiles[layer, -1, q])
            share = int(whole.outlying[layer, side]) / whole.tokens if whole.tokens else None
            row += [plain(whole.quantiles[layer, MEDIAN, q]), largest, share]
        first = plain(whole.first[layer, _BASE])
        rows.append((*row, first, int(whole.first_outlying[layer, 0]), whole.firsts))
    columns = (
        "layer",
        "base_median",
        "base_largest",
        "base_share",
        "tuned_median",
        "tuned_largest",
        "tuned_share",
        "first_mean",
        "first_outlying",
        "firsts",
    )
    note = (
        f"share: of tokens whose norm is more than {OUTLYING:g} times their layer's median (massive activations). Such tokens "
        "own a mean of norms and most of a covariance. first_outlying: first tokens of the base beyond the same bound."
    )
    return Table("outliers", "Norms out of line", columns, tuple(rows), note)


def spaces_table(result: Result, nulls: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for space in result.spaces:
        theirs = [other for null in nulls for other in null.spaces if other.layer == space.layer]
        rows.append(
            (
                space.layer,
                space.cka_distance,
                *_range([other.cka_distance for other in theirs]),
                _mean(space),
                *_range([_mean(other) for other in theirs]),
                max(space.angles, default=None),
                space.base_spread,
                space.tuned_spread,
                space.tokens,
            )
        )
    columns = (
        "layer",
        "corpus_cka_distance",
        "nulls_low",
        "nulls_high",
        "mean_angle",
        "nulls_low_angle",
        "nulls_high_angle",
        "largest_angle",
        "base_spread",
        "tuned_spread",
        "n_tokens",
    )
    k = max((len(space.angles) for space in result.spaces), default=0)
    note = (
        f"All tokens of all slices together, first tokens apart. Angles in degrees between the spaces of the {k} leading "
        "directions: 0, the same space; 90, a direction that the other lacks. Where two variances are nearly equal, noise alone "
        f"turns them. spread: over how many directions the states are spread. {_k(nulls)}"
    )
    return Table("spaces", "The two models' spaces", columns, tuple(rows), note)


def _mean(space: Space) -> float | None:
    return float(np.mean(space.angles)) if space.angles else None
