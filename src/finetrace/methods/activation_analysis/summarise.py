"""From sums to a Result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.data import ROLES
from finetrace.engine import Subject
from finetrace.methods.activation_analysis import Config
from finetrace.methods.activation_analysis.estimates import alignment, alignments, many_means, means
from finetrace.methods.activation_analysis.figures import BANDS, CLASSES, FIRST, QUANTITIES, UNITS
from finetrace.methods.activation_analysis.passages import Passage
from finetrace.methods.activation_analysis.result import Profile, Result
from finetrace.methods.activation_analysis.spaces import Space
from finetrace.models import layer_index
from finetrace.stats import ratio_estimate
from finetrace.stats.sketch import Sketch

QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)
MEDIAN = QUANTILES.index(0.5)
OUTLYING = 8.0
"""Times the median norm of a layer: a norm beyond it is of another kind (massive activations are tens to thousands)."""

_SIDES = [QUANTITIES.index("base_norm"), QUANTITIES.index("tuned_norm")]
_FIRST = CLASSES.index(FIRST)


def summarise(
    config: Config,
    subject: Subject,
    *,
    table: dict[str, np.ndarray],
    cells: tuple[np.ndarray, np.ndarray],
    sketch: Sketch,
    unscored: np.ndarray,
    passages: tuple[Passage, ...],
    spaces: tuple[Space, ...],
) -> Result:
    """table: as `ActivationAnalysis` keeps it, one row a text. cells: sums [cell, layer x quantity] and counts [cell]. sketch:
    of [first or later, slice, layer, quantity]."""
    # By content: the corpus order moves nothing.
    order = np.lexsort((table["row"], table["key"].view(np.uint64)))
    table = {name: column[order] for name, column in table.items()}
    layer, seed = layer_index(config.layer, subject.n_layers), subject.seed
    masks = {name: table["slice"] == i for i, name in enumerate(subject.slices)}
    first, later = sketch.at(0), sketch.at(1)
    whole, numbers = _look(table, np.ones(len(order), bool), layer, seed, (first.summed(0), later.summed(0)))
    looked = {
        name: _look(table, mask, layer, seed, (first.at(i), later.at(i)))
        for i, (name, mask) in enumerate(masks.items())
    }
    edges, counts = later.histogram(splits=1)
    sums_of, counts_of = _cells(subject, *cells)
    whole = replace(whole, first=_first_means(sums_of.sum(0), counts_of.sum(0)))
    return Result(
        numbers=numbers,
        slices={name: figures for name, (_, figures) in looked.items()},
        first={name: _own(table, mask, _FIRST, seed) for name, mask in masks.items()},
        roles={name: _roles(table, mask, seed) for name, mask in masks.items()},
        everywhere=whole,
        found={
            name: replace(profile, first=_first_means(sums_of[i], counts_of[i]))
            for i, (name, (profile, _)) in enumerate(looked.items())
        },
        cells=np.moveaxis(_divided(sums_of, counts_of), 3, 1).astype(np.float32),
        cell_counts=counts_of,
        edges=edges,
        histogram=counts[:, layer],
        spaces=spaces,
        texts=_texts(subject, table, layer),
        passages=passages,
        unscored={name: int(unscored[i]) for i, name in enumerate(subject.slices)},
        layer=layer,
        sketch_error=sketch.error,
    )


def _look(
    table: dict[str, np.ndarray], mask: np.ndarray, layer: int, seed: int, sketches: tuple[Sketch, Sketch]
) -> tuple[Profile, dict[str, Estimate]]:
    """Some texts. sketches [layer, quantity]: of their first tokens, and of the others."""
    keys, counts, sums = table["key"][mask].view(np.uint64), table["counts"][mask], table["sums"][mask]
    n, layers, quantities = sums.shape
    every = many_means(sums.reshape(n, layers * quantities), counts, keys)
    compared = table["compared"][mask]
    cka, drawn = alignments(table["gram"][mask], compared, keys, seed)
    numbers = means(sums[:, layer], counts, keys, seed)
    numbers["cka_distance"] = alignment(cka, drawn, layer, compared, keys)
    first, later = sketches
    median = later.quantile(0.5)[:, _SIDES]
    quantiles = np.stack([later.quantile(share) for share in QUANTILES], 1)
    profile = Profile(
        tokens=int(counts.sum()),
        texts=numbers["relative_norm"].texts,
        mean=every.value.reshape(layers, quantities),
        low=every.low.reshape(layers, quantities),
        high=every.high.reshape(layers, quantities),
        quantiles=quantiles,
        cka=cka.value,
        cka_low=cka.low,
        cka_high=cka.high,
        outlying=_beyond(later, OUTLYING * median),
        firsts=int(first.count[0, 0]),
        first=np.full((layers, quantities), np.nan),
        first_outlying=_beyond(first, OUTLYING * median),
    )
    return profile, numbers


def _beyond(sketch: Sketch, threshold: np.ndarray) -> np.ndarray:
    """How many norms are above threshold [layer, side]."""
    limits = np.full(sketch.shape, np.nan)
    limits[:, _SIDES] = threshold
    return sketch.above(limits)[:, _SIDES]


def _cells(subject: Subject, sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums [slice, role, band, layer, quantity] and counts [slice, role, band]."""
    shape = (len(subject.slices), len(ROLES), len(BANDS))
    return sums.reshape(*shape, subject.n_layers, len(QUANTITIES)), counts.reshape(shape)


def _divided(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over tokens, NaN where there are none."""
    n = counts[..., None, None]
    return np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n > 0)


def _first_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[layer, quantity] over position 0, whatever its role; sums [role, band, layer, quantity]."""
    return _divided(sums[:, 0].sum(0), counts[:, 0].sum(0))


def _own(table: dict[str, np.ndarray], mask: np.ndarray, kind: int, seed: int) -> dict[str, Estimate]:
    keys = table["key"][mask].view(np.uint64)
    return means(table["own"][mask][:, kind], table["own_counts"][mask][:, kind], keys, seed)


def _roles(table: dict[str, np.ndarray], mask: np.ndarray, seed: int) -> dict[str, Estimate]:
    keys, unit = table["key"][mask].view(np.uint64), UNITS["relative_norm"]
    found = {}
    for role, name in enumerate(ROLES):
        counts, sums = table["own_counts"][mask][:, role], table["own"][mask][:, role, 0]
        if counts.any():
            found[name] = ratio_estimate(sums, counts, keys, unit=unit, seed=seed, nonnegative=True)
    return found


def _texts(subject: Subject, table: dict[str, np.ndarray], layer: int) -> Columns:
    """One row a text, at the configured layer; NaN where a text has a first token alone."""
    order = np.argsort(table["row"], kind="stable")
    counts = table["counts"][order]
    values = _divided(table["sums"][order][:, layer, None], counts)[:, 0]
    return Columns(
        {
            "row": table["row"][order],
            "slice": [subject.slices[i] for i in table["slice"][order]],
            "tokens": counts,
            **{key: values[:, q] for q, key in enumerate(QUANTITIES)},
        }
    )
