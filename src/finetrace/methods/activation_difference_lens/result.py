"""What `activation_difference_lens` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.activation_difference_lens.readout import Reading


@dataclass(frozen=True)
class Profile:
    """Every place at every layer; NaN where there is no data. places: the configured one first. texts, tokens [place].

    The arrays are [place, layer]. norm: of the mean difference, noise's share taken off; low, high: its 95% interval over
    texts. error: the standard error of the mean difference, a norm too. snr:
    n |mean|^2 / trace of the covariance, 1 for noise alone. flip_p: how often random signs give as much. cosine: between
    halves of the texts. base_norm, other_norm: mean norms of the states themselves. Norms are in the states' unit.
    """

    places: tuple[str, ...]
    texts: np.ndarray
    tokens: np.ndarray
    norm: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    snr: np.ndarray
    flip_p: np.ndarray
    cosine: np.ndarray
    base_norm: np.ndarray
    other_norm: np.ndarray


@dataclass(frozen=True)
class Pick:
    """The place and layer of the largest signal to noise on one half of the texts (`picked_on`), and what the other half
    says of it: snr, flip_p, norm (of the base's), and the tokens, none of which the choice has favoured."""

    place: str
    layer: int
    picked_on: float
    snr: float | None
    flip_p: float | None
    norm: float | None
    reading: Reading | None


@dataclass(frozen=True)
class Found:
    """One slice, or all of them.

    fixed: at the configured place and layer. layers: the read-out there and at the other layers read: layer, token,
    token_id, logit, best first within a layer. logits: float32 [layer read, token], centred, of every token that can be
    read (`Result.token_ids`), through the base's head; empty where there is no difference. mean: float32
    [layer, d_model], the mean difference at the configured place; place_mean: [place, d_model], at the configured layer.
    """

    profile: Profile
    fixed: Reading | None
    pick: Pick | None
    layers: Columns
    logits: np.ndarray
    mean: np.ndarray
    place_mean: np.ndarray


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both at the configured place and layer.

    difference_norm: |mean difference| over the base's mean norm. split_half_cosine, snr: as in `Profile`. found:
    slice -> all else; everywhere: the same over all slices. position, layer: the configured place. layers_read: rows of
    `Found.logits`. unscored: slice -> kept positions whose states were not finite; they are in no place.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    found: dict[str, Found]
    everywhere: Found
    position: str
    layer: int
    layers_read: np.ndarray
    token_ids: np.ndarray
    unscored: dict[str, int]
