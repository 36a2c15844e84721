"""The door of the ground-truth benchmark: tokens at the ends of the first directions, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.methods.pca.readout import best
from finetrace.methods.pca.result import Layer, Result


def reach(layer: Layer) -> np.ndarray:
    """How far each token's logit is moved, [token]: the largest, over the mean change upwards and the components both ways,
    of its centred logit along a direction times the change's size along it."""
    logits = layer.logits
    if not len(logits):
        return np.zeros(0)
    sized = logits * np.sqrt(layer.variance[: len(logits)])[:, None]
    return np.concatenate([sized[:1], np.abs(sized[1:])]).max(0)


def most(nulls: Sequence[Result], at: int = 0) -> np.ndarray | None:
    """The largest |centred logit| of each token, [token], along any of the first directions of any null; None without."""
    rows = [np.abs(null.layers[at].logits) for null in nulls if len(null.layers[at].logits)]
    return np.concatenate(rows).max(0) if rows else None


def top_tokens(result: Result, where: str, n: int = 20, nulls: Sequence[Result] = ()) -> tuple[int, ...]:
    """Ids of the `n` tokens that the first directions move most, best first: with nulls, most beyond what the null that
    moves each token furthest does. None where there is no difference. The directions are of all slices together, so `where`
    moves nothing."""
    moved = reach(result.layers[0])
    if not moved.any():
        return ()
    theirs = [known for null in nulls if len(known := reach(null.layers[0])) == len(moved)]
    beyond = moved - np.max(theirs, axis=0) if theirs else moved
    return tuple(int(i) for i in result.token_ids[best(beyond, n)])
