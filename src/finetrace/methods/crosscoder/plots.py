"""The page's own figures: whose the latents are, and what latent scaling says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Figure, Histogram, Scatter, Series
from finetrace.methods.crosscoder.result import Result

EDGES = tuple(float(edge) for edge in np.linspace(0, 1, 21))
_SPAN = (-0.5, 2.0)
_POINTS = 400


def norms(result: Result, nulls: Sequence[Result]) -> Figure:
    counts: list[tuple[str, tuple[float, ...]]] = []
    if result.fitted is not None:
        counts.append(("pair", tuple(_shares(result).tolist())))
    theirs = [_shares(null) for null in nulls if null.fitted is not None]
    if theirs:
        counts.append((f"mean of {len(theirs)} nulls", tuple(np.mean(theirs, 0).tolist())))
    return Figure(
        "norms",
        "Whose the latents are",
        Histogram(EDGES, tuple(counts)),
        "decoder norm difference: 0 tuned only, 0.5 shared, 1 base only",
        "share of the latents that fire",
        "Latents of one model by design stand at the ends. Of the others, a hump at the left end that the nulls have too is how "
        "crosscoders train, not what was trained in.",
    )


def _shares(result: Result) -> np.ndarray:
    """Of the latents that fire, by norm difference, [bin]."""
    values = np.asarray(result.latents.data["norm_difference"])[~np.asarray(result.latents.data["dead"])]
    found = np.histogram(values[np.isfinite(values)], EDGES)[0]
    return found / max(1, found.sum())


def scaling(result: Result) -> Figure:
    data = result.latents.data
    error, other = (np.asarray(data[f"ratio_{name}_along_tuned"]) for name in ("error", "reconstruction"))
    tags, energy = np.asarray(data["tag"]), np.nan_to_num(np.asarray(data["energy"]))
    known = np.isfinite(error) & np.isfinite(other)
    series = []
    for tag in ("tuned-only", "shared", "other", "base-only"):
        chosen = np.flatnonzero(known & (tags == tag))
        chosen = chosen[np.argsort(-energy[chosen], kind="stable")][:_POINTS]
        x, y = (np.clip(values[chosen], *_SPAN).tolist() for values in (error, other))
        if x:
            series.append(Series(tag, tuple(x), tuple(y)))
    return Figure(
        "scaling",
        "Does the base hold it too?",
        Scatter(tuple(series)),
        "nu of the error",
        "nu of the reconstruction",
        "Held-out texts; at most 400 latents of a tag, by energy; beyond -0.5 and 2 they are drawn at the edge. Near (0, 0): the "
        "tuned model alone holds it. Far to the right: the dictionary left it out of the base, which holds it (shrinkage). Far up: "
        "the base holds it by way of other latents (decoupling). Latents whose ratio has no interval are not drawn. "
        f"Tags drawn: {', '.join(one.name for one in series) or 'none'}.",
    )
