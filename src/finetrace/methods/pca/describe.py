"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Block, Figure, Line, Number, Page, Passage, Series, Warning
from finetrace.methods.pca import KEYS
from finetrace.methods.pca.result import Result
from finetrace.methods.pca.tables import (
    apart_table,
    called,
    directions_table,
    layers_table,
    nulls_table,
    plain,
    shares,
    slice_words,
    slices_table,
    steered_table,
    tokens_table,
)

LABELS = {
    "top_component_ratio": (
        "Change along its first direction",
        "Over the base's own variance along that direction, the mean change included.",
    ),
    "component_variance": (
        "Change within the components",
        "Mean squared change along the mean and the first components of the other half of the texts, over the base's variance.",
    ),
    "concentration": (
        "Share in the components",
        "How much of the change's squared norm lies within the mean and the first components.",
    ),
    "mean_share": ("Share of the mean", "How much of the change's squared norm is the same at every token."),
}
FEW_TEXTS = 20
# Below this |cosine| between halves, a direction's words are mostly others on other texts.
ALIKE = 0.7


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, then the directions with their words beside the nulls', how they spread, and the texts at their ends. nulls:
    the same method's results on harmless fine-tunes of the same base."""
    blocks: list[Block] = [
        Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key, _ in KEYS
    ]
    blocks += [Warning(text) for text in warnings(result)]
    for at in range(len(result.layers)):
        blocks.append(directions_table(result, nulls, at))
        blocks.append(tokens_table(result, nulls, at))
        if nulls:
            blocks.append(nulls_table(nulls, at))
    blocks += [explained(result, nulls), overlaps(result, nulls), layers_table(result), slices_table(result)]
    blocks += [slice_words(result), apart_table(result), *passages(result)]
    if len(result.steered):
        blocks.append(steered_table(result))
    return Page("PCA of the change", _summary(result, nulls), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    value, layer = result.numbers["top_component_ratio"].value, result.layers[0]
    if value is None:
        return "Too few tokens were seen to hold one half of the texts against the other."
    if not layer.square:
        return "The two models' hidden states are the same."
    known = [v for null in nulls if (v := null.numbers["top_component_ratio"].value) is not None]
    beside = f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""
    words = list(layer.words.data["token"])[:6]
    said = " · ".join(text.strip() or repr(text) for text in words)
    share = float(shares(layer)[0])
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At layer {layer.layer}, along its first direction, the change is {value:.3g} times the base's variance there{beside}; "
        f"the mean alone is {share:.0%} of the change. Through the head the mean says “{said}”.{silent}"
    )


def warnings(result: Result) -> list[str]:
    found, layer = [], result.layers[0]
    lost = {name: n for name, n in result.unscored.items() if n}
    if lost:
        where = ", ".join(f"{n} on {name}" for name, n in lost.items())
        found.append(
            f"Some positions gave no finite states and are in no sum ({where}): try --dtype float32."
        )
    wide = layer.directions.shape[1]
    if 0 < layer.rank < wide:
        found.append(
            f"Fewer tokens than dimensions: {layer.tokens} in {wide}. No more than {layer.rank} components can have any variance, "
            "and the last ones describe these texts, not the change."
        )
    texts = [half.texts for half in layer.halves]
    if sum(texts) > 0 and min(half.tokens for half in layer.halves) < 2:
        found.append("One half of the texts has fewer than two tokens: there are no figures.")
    few = [name for name, figures in result.slices.items() if 0 < figures["concentration"].texts < FEW_TEXTS]
    if few:
        found.append(f"Fewer than {FEW_TEXTS} texts on {', '.join(few)}: intervals are rough there.")
    read = layer.stability[: len(layer.logits)]
    loose = [called(i) for i in np.flatnonzero(read < ALIKE).tolist()]
    if loose:
        found.append(
            f"The two halves of the texts give other directions for {', '.join(loose)} (|cosine| below {ALIKE}): their words are "
            "noise, or components of about one size that mix; the space that several span may still be stable."
        )
    return found


def _values(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(plain(value) for value in values)


def explained(result: Result, nulls: Sequence[Result]) -> Figure:
    """Cumulative: the mean, then with each component."""
    layer = result.layers[0]
    parts = np.cumsum(shares(layer))
    series = [Series("pair", tuple(float(i) for i in range(len(parts))), _values(parts))]
    rows = [np.cumsum(shares(null.layers[0])) for null in nulls if null.layers[0].square]
    if rows:
        count = min(len(row) for row in rows)
        stacked = np.stack([row[:count] for row in rows])
        bounds = _values(stacked.min(0)), _values(stacked.max(0))
        steps = tuple(float(i) for i in range(count))
        series.append(Series(f"{len(rows)} nulls", steps, _values(np.median(stacked, 0)), *bounds))
    return Figure(
        "explained",
        "How few directions hold the change",
        Line(tuple(series)),
        "components beside the mean",
        "share of the change's squared norm",
        f"Layer {layer.layer}; cumulative, from the mean alone. Band: from the smallest to the largest null. On the texts that "
        "the directions are from, so a little too high; `concentration` is not.",
    )


def overlaps(result: Result, nulls: Sequence[Result]) -> Figure:
    own = result.layers[0].overlap
    series = [Series("pair", tuple(float(k + 1) for k in range(len(own))), _values(own))]
    rows = [found for null in nulls if len(found := null.layers[0].overlap) and np.isfinite(found).all()]
    if rows:
        count = min(len(row) for row in rows)
        stacked = np.stack([row[:count] for row in rows])
        bounds = _values(stacked.min(0)), _values(stacked.max(0))
        steps = tuple(float(k + 1) for k in range(count))
        series.append(Series(f"{len(rows)} nulls", steps, _values(np.median(stacked, 0)), *bounds))
    return Figure(
        "overlap",
        "Do two halves of the texts give the same space?",
        Line(tuple(series)),
        "components",
        "mean squared cosine",
        "Between the spaces of the halves' first components: 1, the same whatever the texts. A dip is a cut between components "
        "of about one size. Band: from the smallest to the largest null, around the median.",
    )


def passages(result: Result) -> list[Passage]:
    return [
        Passage(
            title=f"{called(p.direction)}, {'up' if p.end > 0 else 'down'}: {p.value:+.1f} in {p.slice}, text {p.row}",
            tokens=p.tokens,
            values=p.values,
            unit="times the mean change" if p.direction == 0 else "standard deviations along the component",
            slice=p.slice,
        )
        for p in result.passages
    ]
