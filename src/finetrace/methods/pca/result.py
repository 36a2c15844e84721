"""What `pca` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns

STEERED = ("direction", "times", "slice", "row", "side", "prompt", "text")


@dataclass(frozen=True)
class Half:
    """One half of the texts. basis [direction, d_model]: orthonormal, spans its mean change and its components; none where
    nothing changed. top [d_model]: the direction within them along which the change is largest, its mean included; mean
    [d_model]: the mean change. float32; of norm 1 but for the mean. tokens, texts: how many."""

    basis: np.ndarray
    top: np.ndarray
    mean: np.ndarray
    tokens: int
    texts: int


@dataclass(frozen=True)
class Layer:
    """One layer. Directions are rows: 0 the mean change, then the components, largest variance first.

    directions: float32 [direction, d_model], of norm 1 (the mean's is 0 where there is none). variance [direction]: of the
    change along it; row 0: the mean's squared norm. base_variance [direction]: of the base's states along it. stability
    [direction]: |cosine| between the two halves' own directions, NaN where one has none. overlap [k]: mean squared cosine
    of the angles between the spaces of the halves' first k components, k = 1, 2, ...

    square: mean squared norm of the change; base_square, tuned_square: variances of the states, all directions together.
    participation: over how many directions the variance of the change, of the base and of the tuned states is spread.
    base_mean [d_model]. rank: how many directions can vary at all. logits: float32 [direction read, token] through the
    base's head, centred. words: direction, end, token, token_id, logit, other_rank (place in the tuned head's order).
    by_slice: the mean change of each slice, read likewise: slice, size (of the base's norm), end, token, token_id, logit.
    """

    layer: int
    tokens: int
    directions: np.ndarray
    variance: np.ndarray
    base_variance: np.ndarray
    stability: np.ndarray
    overlap: np.ndarray
    square: float | None
    base_square: float | None
    tuned_square: float | None
    participation: tuple[float | None, float | None, float | None]
    base_mean: np.ndarray
    rank: int
    halves: tuple[Half, Half]
    logits: np.ndarray
    words: Columns
    by_slice: Columns


@dataclass(frozen=True)
class Passage:
    """A text at one end of a direction. end: 1 or -1. value: the change along it at the token where that is most extreme,
    in standard deviations (of direction 0: over the mean's norm). tokens, values: what is around it; a value is of the
    state *at* that token, None for a token that does not count."""

    direction: int
    end: int
    slice: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both at the first of the layers.

    component_variance: the change's squared norm within the mean and the components, over the base's variance.
    top_component_ratio: along the one direction of the largest change, over the base's variance along it. concentration:
    the share of the change's squared norm that lies within the mean and the components. mean_share: that of the mean
    alone. Every text is measured along the directions of the other half of the texts.

    passages: of the first layer. apart: place (first, template, rest), tokens, change and base: root mean squared norms
    at the first layer. unscored: slice -> kept positions whose states were not finite. normalised: by
    the base's norm at each token. steered: what the models write on from a few texts: direction, times (of the change's size
    along it; 0 for plain), slice, row, side, prompt, text.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    layers: tuple[Layer, ...]
    passages: tuple[Passage, ...]
    apart: Columns
    token_ids: np.ndarray
    unscored: dict[str, int]
    normalised: bool
    steered: Columns
