"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Block, Figure, Heatmap, Line, Number, Page, Series, Warning
from finetrace.methods.activation_difference_lens.numbers import KEYS, plain
from finetrace.methods.activation_difference_lens.places import FIRST
from finetrace.methods.activation_difference_lens.result import Profile, Result
from finetrace.methods.activation_difference_lens.tables import (
    is_measured,
    layers_table,
    picked_table,
    slices_table,
    states_table,
    token_tables,
    where,
)

LABELS = {
    "difference_norm": (
        "Mean difference",
        "Norm of the mean change of the hidden states, noise's share taken off, over the base's mean norm.",
    ),
    "split_half_cosine": (
        "Split-half cosine",
        "Between the mean changes on two halves of the texts: 1, the same direction; near 0, noise.",
    ),
    "snr": (
        "Signal to noise",
        "n times the squared mean over the variance between texts: 1 for noise alone; it grows with n.",
    ),
}
FEW_TEXTS = 20
# Below this cosine between halves, the halves' tokens are mostly others.
ALIKE = 0.5
ALPHA = 0.05


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures and tokens of all slices together, then by layer, position and slice. nulls: the same method's results on
    harmless fine-tunes of the same base."""
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in KEYS]
    blocks += _warnings(result)
    blocks += token_tables(result, nulls, (None,))
    layers = layers_table(result)
    blocks += [] if layers is None else [layers]
    blocks += [_norms(result, nulls), *_against(result, nulls), _map(result), _cosines(result)]
    blocks += [slices_table(result), picked_table(result)]
    if len(result.found) > 1:
        blocks += token_tables(result, nulls, tuple(result.found))
    blocks.append(states_table(result))
    return Page("Activation difference lens", _summary(result, nulls), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    value, fixed = result.numbers["difference_norm"].value, result.everywhere.fixed
    if value is None:
        return "No two texts reach the place that is read."
    if fixed is None:
        return "The two models' hidden states are the same."
    words = ", ".join(f"“{text.strip() or text}”" for text in list(fixed.promoted.data["token"])[:8])
    known = [v for null in nulls if (v := null.numbers["difference_norm"].value) is not None]
    beside = f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At {where(result)}, the mean change of the hidden states is {value:.3g} of the base's norm{beside}. Through the "
        f"head it promotes {words}.{silent}"
    )


def _warnings(result: Result) -> list[Block]:
    found = []
    lost = {name: n for name, n in result.unscored.items() if n}
    if lost:
        places = ", ".join(f"{n} on {name}" for name, n in lost.items())
        found.append(
            f"Some positions gave no finite states and are in no sum ({places}): try --dtype float32."
        )
    texts = {name: figures["difference_norm"].texts for name, figures in result.slices.items()}
    none = [name for name, n in texts.items() if n < 2]
    if none:
        found.append(
            f"Fewer than two texts of {', '.join(none)} reach position {result.position}: no figure there."
        )
    few = [name for name, n in texts.items() if 2 <= n < FEW_TEXTS]
    if few:
        found.append(f"Fewer than {FEW_TEXTS} texts on {', '.join(few)}: intervals and z are rough there.")
    noisy = [name for name in result.found if _is_noise(result, name)]
    if noisy:
        found.append(
            f"On {', '.join(noisy)} the mean difference is not told from noise (halves of the texts disagree, or random signs "
            "give as much): its tokens are noise."
        )
    return [Warning(text) for text in found]


def _is_noise(result: Result, name: str) -> bool:
    """Whether the difference at the configured place could be luck; a difference of nothing is not noise."""
    found = result.found[name]
    if found.fixed is None or not is_measured(result, name):
        return False
    cosine, p = (float(row[0, result.layer]) for row in (found.profile.cosine, found.profile.flip_p))
    return cosine < ALIKE or p > ALPHA


def _shares(profile: Profile) -> np.ndarray:
    """|mean difference| over the base's norm at the configured place, [layer]."""
    return profile.norm[0] / profile.base_norm[0]


def _points(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(plain(v) for v in values)


def _norms(result: Result, nulls: Sequence[Result]) -> Figure:
    profile, series = result.everywhere.profile, []
    if is_measured(result, None):
        layers, base = tuple(range(len(profile.norm[0]))), profile.base_norm[0]
        bounds = [_points(row[0] / base) for row in (profile.low, profile.high)]
        series.append(Series("pair", layers, _points(_shares(profile)), *bounds))
        theirs = [_shares(null.everywhere.profile) for null in nulls if is_measured(null, None)]
        if theirs:
            rows = np.stack(theirs)
            bounds = [_points(rows.min(0)), _points(rows.max(0))]
            series.append(Series(f"{len(rows)} nulls", layers, _points(np.median(rows, 0)), *bounds))
    return Figure(
        "norms",
        "Size of the mean difference by layer",
        Line(tuple(series)),
        "layer",
        "share of the base's norm",
        f"All slices together, position {result.position}. Bands: a 95% interval over texts for the pair; from the smallest to "
        "the largest, around the median, for the nulls. No fine-tune is near 0.",
    )


def _against(result: Result, nulls: Sequence[Result]) -> list[Figure]:
    """Each slice's norm over the nulls' geometric mean: which slice is out of line."""
    series = []
    for name, found in result.found.items():
        known = [_shares(null.found[name].profile) for null in nulls if is_measured(null, name)]
        if known and is_measured(result, name) and (np.stack(known) > 0).all():
            usual = np.exp(np.log(np.stack(known)).mean(0))
            ratio = _shares(found.profile) / usual
            series.append(Series(name, tuple(range(len(ratio))), _points(ratio)))
    if not series:
        return []
    return [
        Figure(
            "against_nulls",
            "The same, as times the nulls",
            Line(tuple(series)),
            "layer",
            "times the nulls' geometric mean",
            f"Position {result.position}. The verdict is about layer {result.layer}. A slice apart from the others is a narrow "
            "change; all alike are a larger dose, or a change of style.",
        )
    ]


def _map(result: Result) -> Figure:
    """All slices together: where the difference is known at all."""
    profile = result.everywhere.profile
    places = [i for i, place in enumerate(profile.places) if place != FIRST and _is_listed(place)]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(profile.snr)
    rows = tuple(tuple(plain(values[i, layer]) for i in places) for layer in range(values.shape[1]))
    return Figure(
        "snr_map",
        "Signal to noise by layer and position",
        Heatmap(tuple(profile.places[i] for i in places), tuple(str(i) for i in range(len(rows))), rows),
        "position",
        "layer",
        "log10; 0: noise alone. All slices together. A cell is empty where there are no texts, or all are alike. High values "
        "say that the mean is known well, not that it is large or telling.",
    )


def _is_listed(place: str) -> bool:
    """Whether a place is one of the map's own, and not a bare number that joins texts and conversations."""
    return not place.lstrip("-").isdigit()


def _cosines(result: Result) -> Figure:
    series = [
        Series(name, tuple(range(found.profile.cosine.shape[1])), _points(found.profile.cosine[0]))
        for name, found in result.found.items()
        if is_measured(result, name)
    ]
    return Figure(
        "cosines",
        "Do two halves of the texts agree?",
        Line(tuple(series)),
        "layer",
        "split-half cosine",
        f"Position {result.position}; averaged over balanced halves. Near 0: what is read there is noise.",
    )
