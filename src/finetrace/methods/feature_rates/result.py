"""What `feature_rates` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns


@dataclass(frozen=True)
class Source:
    """The SAE. format: whose file it is; name: as it was given; revision: the hub commit; model, hook: what it was trained on, as
    its folder says; None where it does not. features: how many it has."""

    format: str
    name: str
    revision: str | None
    model: str | None
    hook: str | None
    features: int


@dataclass(frozen=True)
class Passage:
    """A text as a feature reads it in one model. side: "base" or "tuned", the one in which the feature fires more; value: its largest
    code; values: the code at each token shown, 0 where it is silent."""

    feature: int
    side: str
    slice: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate.

    turnover: of all firings in either model (a feature at a token), the share that one model has alone: 0 the same, 1 none in
    common. changed_share: of the features that fire at all, those whose rate changed at the false discovery rate q; over all slices
    alone. codes_base, codes_tuned: features that fire at a token. unexplained_base, unexplained_tuned: squared distance of the states
    from what the SAE gives back, over that from its constant part: near 0 it reads this model well, near 1 not at all.

    features: those that fire in either model: feature, base, tuned (shares of tokens), difference with low and high, ratio with
    ratio_low and ratio_high, p, q, code_difference (mean code per token), code_q, in_texts. shown: ids of the features that are read. words: feature, head, sign, rank, token, token_id, logit. lost:
    tokens whose states were not finite.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    source: Source
    layer: int
    tokens: int
    texts: int
    features: Columns
    shown: np.ndarray
    words: Columns
    passages: tuple[Passage, ...]
    q: float
    lost: int
