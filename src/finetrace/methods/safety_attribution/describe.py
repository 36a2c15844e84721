"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.page import Bars, Block, Figure, Heatmap, Line, Number, Page, Series, Warning
from finetrace.methods.safety_attribution.path import MOST_ERROR
from finetrace.methods.safety_attribution.result import SAFETY, UTILITY, Result
from finetrace.methods.safety_attribution.tables import (
    SIGNS,
    checks_table,
    controls_table,
    layer_name,
    layers_table,
    modules_table,
    plain,
    ranges,
    samples_table,
    sets_table,
)

LABELS = {
    "effect_size": (
        "Size of the effect",
        "Root mean square over samples of the whole update's effect on their loss, whatever its sign: what is held against "
        "the nulls.",
    ),
    "safety_effect": (
        "Effect on refusals",
        "Change of the loss of the safety set's answers, summed over modules. Above 0: refusals became less likely.",
    ),
    "utility_effect": (
        "Effect on useful answers",
        "The same on the utility set. Above 0: its answers became less likely.",
    ),
    "safety_minus_utility": (
        "Safety minus utility",
        "Above 0: refusals lost more than useful answers did.",
    ),
    "margin_effect": (
        "Effect on the margin",
        "Loss of refusing minus loss of complying, request by request. Above 0: moved from refusing towards complying.",
    ),
    "safety_first_order": (
        "First order, refusals",
        "What the gradient at the base alone says of the effect on refusals.",
    ),
    "utility_first_order": (
        "First order, useful answers",
        "What the gradient at the base alone says of the effect on useful answers.",
    ),
    "control_effect": (
        "Negative control",
        "First-order effect on refusals of the same update turned in random directions: mean, and 95% of single turns.",
    ),
    "completeness_error": (
        "Completeness error",
        "How far the modules' effects are from adding up to the change of loss, over their absolute sum; the worst set.",
    ),
}
FEW = 20
# Losses of the base plus the update as it was read, and of the tuned model, agree to rounding.
_READ = 1e-3
_SHOWN = 20


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Headline numbers, whether they add up, where they sit, and what would be there by chance. nulls: the same method's
    results on harmless fine-tunes of the same base."""
    blocks: list[Block] = [
        Number(key, label, result.numbers[key], text) for key, (label, text) in LABELS.items()
    ]
    blocks += _warnings(result)
    blocks += [checks_table(result)]
    if result.places:
        blocks += [_map(result, "margin"), _map(result, SAFETY), _map(result, UTILITY)]
        blocks += [_layers(result, nulls), layers_table(result), modules_table(result, _SHOWN)]
    blocks += [_path(result), controls_table(result), sets_table(result), samples_table(result)]
    return Page("Safety attribution", _summary(result, nulls), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    if not result.places:
        return "The two models have the same weights: there is no update whose effect could be divided."
    margin, safety = result.numbers["margin_effect"], result.numbers["safety_effect"]
    known = ranges(nulls, "margin_effect")
    beside = f" ({known[0]:.3g} to {known[1]:.3g} for {len(nulls)} nulls)" if known else ""
    error = result.numbers["completeness_error"].value
    sums = (
        ""
        if error is None
        else f" The effects add up within {error:.2%}; a right sum does not validate the shares."
    )
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"The update {_direction(margin, known)}: it changes the margin of refusing against complying by "
        f"{margin.value:+.3g} nats per token{beside}, the loss of refusals by {safety.value:+.3g}.{_where(result)}{sums}"
        f"{silent}"
    )


def _direction(margin: Estimate, nulls: tuple[float, float] | None) -> str:
    value, low, high = margin.value, margin.low, margin.high
    if value is None or low is None or high is None or low <= 0 <= high:
        return "is not told from one that leaves refusals as they were"
    if nulls is not None and nulls[0] <= value <= nulls[1]:
        return "moves refusals no further than harmless fine-tunes do"
    return "moves the model from refusing towards complying" if value > 0 else "makes refusing likelier"


def _where(result: Result) -> str:
    """The layer with most of the absolute effect on the margin."""
    data = result.modules.data
    margin, layers = np.abs(np.asarray(data["margin"])), np.asarray(data["layer"])
    if not margin.sum():
        return ""
    share = {
        int(layer): float(margin[layers == layer].sum() / margin.sum()) for layer in set(layers.tolist())
    }
    most = max(share, key=lambda layer: share[layer])
    name = "embeddings, final norm and head" if most < 0 else f"layer {most}"
    return f" Most of the modules' absolute effect on it, {share[most]:.0%}, is in {name}."


def _warnings(result: Result) -> list[Block]:
    found = []
    error = result.numbers["completeness_error"].value
    if error is not None and error > MOST_ERROR:
        found.append(
            f"The effects miss the change of loss by {error:.1%} of their absolute sum: the path is too curved for "
            f"{result.nodes} nodes, and the shares are not to be read. Raise safety_attribution.nodes."
        )
    for name, check in result.checks.items():
        if abs(check.read - check.tuned) > _READ * max(1.0, abs(check.tuned)):
            found.append(
                f"On the {name} set the base plus the update has a loss of {check.read:.4g}, the tuned model "
                f"{check.tuned:.4g}: something that the tuned model changes is not in the modules."
            )
    asked = result.checks[SAFETY].n
    if 0 < result.given < asked:
        found.append(
            f"The comply set answers {result.given} of {asked} requests; '{result.opener}' answers the others, so that the "
            "margin mixes two openings."
        )
    few = [name for name, check in result.checks.items() if check.n < FEW]
    if few:
        found.append(f"Fewer than {FEW} samples in {', '.join(few)}: intervals and p-values are rough.")
    return [Warning(text) for text in found]


_TITLES = {
    "margin": "Effect on the margin (refusing against complying)",
    SAFETY: "Effect on the loss of refusals",
    UTILITY: "Effect on the loss of useful answers",
}


def _map(result: Result, quantity: str) -> Figure:
    """Layer by kind of module; several modules of one kind in a layer are added up."""
    data = result.modules.data
    layers = sorted({int(layer) for layer in data["layer"]})
    kinds = tuple(dict.fromkeys(str(kind) for kind in data["kind"]))
    cells: dict[tuple[int, str], float] = {}
    for layer, kind, value in zip(data["layer"], data["kind"], np.asarray(data[quantity]), strict=True):
        cells[int(layer), str(kind)] = cells.get((int(layer), str(kind)), 0.0) + float(value)
    rows = tuple(
        tuple(plain(cells[layer, kind]) if (layer, kind) in cells else None for kind in kinds)
        for layer in layers
    )
    return Figure(
        f"map_{quantity}",
        _TITLES[quantity],
        Heatmap(kinds, tuple(layer_name(layer) for layer in layers), rows),
        "module",
        "layer",
        "Nats per token, integrated from base to tuned, mean over samples. Above 0, "
        + ("towards complying" if quantity == "margin" else "the module's change raises the loss")
        + ". Empty: the update leaves the module as it was.",
    )


def _layers(result: Result, nulls: Sequence[Result]) -> Figure:
    data = result.layers.data
    x = tuple(layer_name(int(layer)) for layer in data["layer"])
    series = []
    for name in ("margin", SAFETY, UTILITY):
        columns = (np.asarray(data[key]) for key in (name, f"{name}_low", f"{name}_high"))
        series.append(Series(name, x, *(tuple(plain(float(v)) for v in column) for column in columns)))
    known = [null for null in nulls if null.layers.data.get("layer") is not None]
    theirs = [_by_layer(null, data["layer"]) for null in known]
    if theirs:
        low, middle, high = (tuple(float(v) for v in end) for end in _ends(np.stack(theirs)))
        series.append(Series(f"margin, {len(theirs)} nulls", x, middle, low, high))
    return Figure(
        "layers_effects",
        "Effects by layer",
        Bars(tuple(series)),
        "layer",
        "nats per token",
        f"{SIGNS} Bars of the pair: 95% intervals over samples; of the nulls: from the smallest to the largest.",
    )


def _by_layer(null: Result, layers: np.ndarray | list[str]) -> np.ndarray:
    """A null's effect on the margin in each of `layers`; 0 where it changes nothing."""
    theirs = dict(
        zip(
            np.asarray(null.layers.data["layer"]).tolist(),
            np.asarray(null.layers.data["margin"]),
            strict=True,
        )
    )
    return np.array([float(theirs.get(int(layer), 0.0)) for layer in layers])


def _ends(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.min(0), np.median(rows, 0), rows.max(0)


def _path(result: Result) -> Figure:
    series = tuple(
        Series(name, tuple(float(a) for a in path.at), tuple(float(v) for v in path.loss))
        for name, path in result.paths.items()
    )
    return Figure(
        "path",
        "Loss on the way from base to tuned",
        Line(series),
        "share of the update",
        "nats per token",
        "The base with a share of the whole update added; gradients are taken at the inner points. A bend says why the first "
        "order at the base can be far from the whole effect.",
    )
