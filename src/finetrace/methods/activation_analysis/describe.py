"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetrace.core.page import (
    Block,
    Figure,
    Heatmap,
    Histogram,
    Line,
    Number,
    Page,
    Passage,
    Series,
    Warning,
)
from finetrace.data import ROLES
from finetrace.methods.activation_analysis.beside import Beside, beside, beside_table, standing_out
from finetrace.methods.activation_analysis.estimates import plain
from finetrace.methods.activation_analysis.figures import BANDS, QUANTITIES
from finetrace.methods.activation_analysis.result import Profile, Result
from finetrace.methods.activation_analysis.tables import (
    first_table,
    layers_table,
    outliers_table,
    slices_table,
    spaces_table,
)

LABELS = {
    "relative_norm": (
        "Relative difference",
        "Norm of tuned minus base over the base's norm, mean over tokens; first tokens apart.",
    ),
    "difference_norm": ("Difference", "Norm of tuned minus base, in the unit of the states."),
    "cosine_distance": ("Cosine distance", "1 - cosine between the two models' states: how far they turned."),
    "base_norm": ("Base's norm", "Mean norm of the base's states."),
    "tuned_norm": ("Tuned model's norm", "Mean norm of the tuned model's states."),
    "cka_distance": (
        "CKA distance",
        "1 - linear CKA inside texts: 0 where tokens stay as alike to one another as they were.",
    ),
}
FEW_TEXTS = 20
_RELATIVE = QUANTITIES.index("relative_norm")


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures of all slices together, then by layer, slice, position, role and token. nulls: the same method's results on
    harmless fine-tunes of the same base."""
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in LABELS]
    blocks += [Warning(text) for text in _warnings(result)]
    shape = beside(result, nulls)
    blocks += [slices_table(result), beside_table(shape), layers_table(result, nulls)]
    blocks += [_by_layer(result, nulls), _slices_by_layer(result), _cka(result, nulls)]
    blocks += [_positions(result), _roles(result), _spread(result), _norms(result)]
    blocks += [first_table(result), outliers_table(result)]
    blocks += [spaces_table(result, nulls)] if result.spaces else []
    blocks += _passages(result)
    return Page("Activation analysis", _summary(result, nulls, shape), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result], shape: Mapping[str, Beside]) -> str:
    figure = result.numbers["relative_norm"]
    if figure.value is None:
        return "No token was measured."
    if figure.value == 0:
        return f"The two models' hidden states are the same at layer {result.layer}."
    known = [v for null in nulls if (v := null.numbers["relative_norm"].value) is not None]
    known_range = f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""
    known_slices = {
        name: e.value
        for name, figures in result.slices.items()
        if (e := figures["relative_norm"]).value is not None
    }
    most = max(known_slices, key=lambda name: known_slices[name] or 0.0)
    where = f", most on `{most}` ({known_slices[most]:.3g})" if len(known_slices) > 1 else ""
    apart = standing_out(shape)
    share = ""
    if apart:
        named = ", ".join(f"`{name}` ({shape[name].verdict.ratio:.2g} times)" for name in apart)
        share = f" Beside the other slices, more of it is on {named} than in the nulls."
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At layer {result.layer} the hidden states moved by {figure.value:.3g} of the base's norm per token{known_range}{where}."
        f"{share}{silent}"
    )


def _warnings(result: Result) -> list[str]:
    found = []
    lost = {name: n for name, n in result.unscored.items() if n}
    if lost:
        places = ", ".join(f"{n} on {name}" for name, n in lost.items())
        found.append(
            f"Some tokens gave no finite figures and are in nothing here ({places}): try --dtype float32."
        )
    texts = {name: figures["relative_norm"].texts for name, figures in result.slices.items()}
    few = [name for name, n in texts.items() if 0 < n < FEW_TEXTS]
    if few:
        found.append(f"Fewer than {FEW_TEXTS} texts on {', '.join(few)}: their intervals are rough.")
    return found


def _points(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(plain(v) for v in values)


def _layers(values: np.ndarray) -> tuple[float, ...]:
    return tuple(range(len(values)))


def _with_nulls(own: tuple[np.ndarray, np.ndarray, np.ndarray], theirs: list[np.ndarray]) -> Line:
    """A profile with its interval, beside the nulls' median and range."""
    series = [Series("pair", _layers(own[0]), *(_points(row) for row in own))]
    usable = [row for row in theirs if np.isfinite(row).all()]
    if usable:
        rows = np.stack(usable)
        bounds = (np.median(rows, 0), rows.min(0), rows.max(0))
        series.append(Series(f"{len(rows)} nulls", _layers(rows[0]), *(_points(row) for row in bounds)))
    return Line(tuple(series))


def _by_layer(result: Result, nulls: Sequence[Result]) -> Figure:
    whole = result.everywhere
    own = (whole.mean[:, _RELATIVE], whole.low[:, _RELATIVE], whole.high[:, _RELATIVE])
    return Figure(
        "layers_relative",
        "Relative difference by layer",
        _with_nulls(own, [null.everywhere.mean[:, _RELATIVE] for null in nulls]),
        "layer",
        "share of the base's norm",
        "All slices together, first tokens apart. Bands: a 95% interval over texts for the pair; from the smallest to the "
        "largest, around the median, for the nulls. Changes add up on the way: a rise shows where something was added.",
    )


def _slices_by_layer(result: Result) -> Figure:
    series = tuple(
        Series(name, _layers(profile.mean), _points(profile.mean[:, _RELATIVE]))
        for name, profile in result.found.items()
        if profile.tokens
    )
    return Figure(
        "slices_relative",
        "Relative difference by layer and slice",
        Line(series),
        "layer",
        "share of the base's norm",
        "A slice apart from the others, more than it is in the nulls, is a narrow change.",
    )


def _cka(result: Result, nulls: Sequence[Result]) -> Figure:
    whole: Profile = result.everywhere
    own = (whole.cka, whole.cka_low, whole.cka_high)
    return Figure(
        "layers_cka",
        "CKA distance by layer",
        _with_nulls(own, [null.everywhere.cka for null in nulls]),
        "layer",
        "1 - CKA",
        "Tokens of one text compared with one another. It does not see a constant that is added to every token, a rotation of "
        "all states or a change of their size; a rise is a change of what stands next to what.",
    )


def _pooled(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the relative norm [layer, role, band] over all slices, and counts [role, band]."""
    counts = result.cell_counts
    sums = np.nan_to_num(result.cells[..., _RELATIVE].astype(np.float64)) * counts[:, None]
    return sums.sum(0), counts.sum(0)


def _map(
    values: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[float | None, ...], ...]]:
    """Columns with tokens: their names, the layers, and means [layer, column]."""
    kept = [i for i in range(len(names)) if counts[i] > 0]
    rows = tuple(tuple(float(row[i] / counts[i]) for i in kept) for row in values)
    return tuple(names[i] for i in kept), tuple(str(i) for i in range(len(values))), rows


def _positions(result: Result) -> Figure:
    sums, counts = _pooled(result)
    return Figure(
        "positions_relative",
        "Relative difference by layer and position",
        Heatmap(*_map(sums.sum(1), counts.sum(0), BANDS)),
        "position in the text",
        "layer",
        "Share of the base's norm, all slices together. Position 0 is shown here and is in no headline figure: attention sinks "
        "into it, its norm is of another kind, and a model that adds the same token first makes all texts alike there.",
    )


def _roles(result: Result) -> Figure:
    sums, counts = _pooled(result)
    return Figure(
        "roles_relative",
        "Relative difference by layer and role",
        Heatmap(*_map(sums[..., 1:].sum(2), counts[:, 1:].sum(1), ROLES)),
        "role of the token",
        "layer",
        "Share of the base's norm, all slices together, first tokens apart. `template` is what the chat template adds.",
    )


def _shares(result: Result, of: Sequence[tuple[str, np.ndarray]]) -> Histogram:
    shares = tuple((name, tuple((row / row.sum()).tolist())) for name, row in of if row.sum())
    return Histogram(tuple(float(edge) for edge in result.edges), shares)


def _spread(result: Result) -> Figure:
    rows = [(name, result.histogram[i, _RELATIVE]) for i, name in enumerate(result.slices)]
    return Figure(
        "spread",
        "How the difference is spread over tokens",
        _shares(result, rows),
        f"relative norm at layer {result.layer}, share of the base's norm",
        "share of tokens",
        "A narrow change is a few tokens far to the right; a general drift is a whole hump that moved.",
        log_x=True,
    )


def _norms(result: Result) -> Figure:
    rows = [
        (name, result.histogram[:, QUANTITIES.index(key)].sum(0))
        for name, key in (("base", "base_norm"), ("tuned", "tuned_norm"))
    ]
    return Figure(
        "norms",
        "Norms of the two models' states",
        _shares(result, rows),
        f"norm at layer {result.layer}",
        "share of tokens",
        "All slices together, first tokens apart. A small hump far to the right is tokens with massive activations.",
        log_x=True,
    )


def _passages(result: Result) -> list[Passage]:
    said = {"mean": "mean", "token": "largest token"}
    seen: set[tuple[str, int]] = set()
    found = []
    for p in result.passages:
        # A text that leads both rankings is shown once.
        if (p.slice, p.row) not in seen:
            seen.add((p.slice, p.row))
            found.append(
                Passage(
                    title=f"{p.slice}, text {p.row}: {said[p.by]} {p.value:.3g} of the base's norm",
                    tokens=p.tokens,
                    values=p.values,
                    unit=f"relative norm of the difference at this token, layer {result.layer}",
                    slice=p.slice,
                )
            )
    return found
