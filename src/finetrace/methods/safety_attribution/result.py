"""What `safety_attribution` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns

SAFETY, UTILITY, COMPLY = "safety", "utility", "comply"
QUANTITIES = ("safety", "utility", "contrast", "margin")
"""safety, utility: effects on the loss of the safety set's and the utility set's answers. contrast: the first minus the
second. margin: the effect on refusing minus the effect on complying, request by request."""


@dataclass(frozen=True)
class Check:
    """Completeness on one set of samples: do the effects of all modules add up to what the update really did?

    base, tuned: mean losses of the two models. total: the sum of the modules' mean effects. error: |total - (tuned - base)|
    over the sum of the modules' absolute mean effects; None where nothing has an effect. one_panel: the same with the
    configured nodes once; points: how many were taken in the end. read: mean loss of the base with the whole update added
    as it was read; away from `tuned`, something that the tuned model changes was not read.
    """

    n: int
    base: float
    tuned: float
    total: float
    error: float | None
    one_panel: float | None
    points: int
    read: float

    @property
    def difference(self) -> float:
        return self.tuned - self.base


@dataclass(frozen=True)
class Path:
    """Mean losses on the straight way from base (0) to tuned (1): at [point], loss [point]."""

    at: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Result:
    """Effects in nats a token; above 0, the update raises the loss (of refusals: safety got worse). All are integrated over
    the path from base to tuned, but for `first_*`, which are those of the first order at the base.

    numbers: over all samples, and set against set. slices: "safety" and "utility" -> key -> estimate. places: the modules
    that the update changes, in the model's order. modules: one row a place: module, layer (-1: none), kind, and for each of
    QUANTITIES its mean, `_low`, `_high` (95% over samples), `_p`, `_q` (Benjamini-Hochberg over the places), with
    first_safety and first_utility. layers: the same for the sums over a layer's places. samples: one row a sample, numbers
    alone: set, sample, tokens, base_loss, tuned_loss, effect, first_order. effects, first: set -> [sample, place]. controls:
    set -> [draw], mean first-order effects of the update turned in random directions. given: requests that the comply set
    answered; `opener` answered the others.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    checks: dict[str, Check]
    places: tuple[str, ...]
    modules: Columns
    layers: Columns
    samples: Columns
    effects: dict[str, np.ndarray]
    first: dict[str, np.ndarray]
    controls: dict[str, np.ndarray]
    paths: dict[str, Path]
    nodes: int
    opener: str
    given: int
