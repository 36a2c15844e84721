"""What `activation_analysis` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.activation_analysis.passages import Passage
from finetrace.methods.activation_analysis.spaces import Space


@dataclass(frozen=True)
class Profile:
    """One slice, or all of them, at every layer; the last axis of the arrays is that of `QUANTITIES`. NaN where there is no data.

    tokens, texts: behind mean, low, high and quantiles; first tokens are in none of these. mean, low, high [layer, quantity]:
    mean over tokens and its 95% interval over texts. quantiles [layer, share, quantity]: of tokens, at `QUANTILES`, within
    `sketch_error` of the exact ones. cka, cka_low, cka_high [layer]: CKA distance. outlying [layer, side]: tokens of the base,
    and of the tuned model, with more than `OUTLYING` times their layer's median norm.

    firsts: first tokens. first [layer, quantity]: their means. first_outlying [layer, side]: how many of them are
    longer than `OUTLYING` times the median of the *other* tokens.
    """

    tokens: int
    texts: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray
    cka: np.ndarray
    cka_low: np.ndarray
    cka_high: np.ndarray
    outlying: np.ndarray
    firsts: int
    first: np.ndarray
    first_outlying: np.ndarray


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both at the configured layer, first tokens apart.

    first: slice -> key -> estimate over first tokens alone. roles: slice -> role -> relative norm, first tokens apart.
    everywhere, found: all else, by layer. cells [slice, layer, role, band, quantity]: means over tokens, NaN where
    cell_counts [slice, role, band] is 0; band 0 is the first tokens. histogram [slice, quantity, bin]: tokens at the
    configured layer between consecutive edges. spaces: corpus-wide, at the layers that fit. texts: one row a text.
    passages: the texts that moved most, largest first. unscored: slice -> kept tokens whose figures were not finite at some
    layer; they are in nothing. sketch_error: relative error of a quantile.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    first: dict[str, dict[str, Estimate]]
    roles: dict[str, dict[str, Estimate]]
    everywhere: Profile
    found: dict[str, Profile]
    cells: np.ndarray
    cell_counts: np.ndarray
    edges: np.ndarray
    histogram: np.ndarray
    spaces: tuple[Space, ...]
    texts: Columns
    passages: tuple[Passage, ...]
    unscored: dict[str, int]
    layer: int
    sketch_error: float
