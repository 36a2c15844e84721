"""What `sae_difference` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns

IDENTICAL, CONSTANT, FEW = "identical", "constant", "few"
CONSTANT_PART = -1
"""In the place of a latent: what the dictionary writes at every token."""


@dataclass(frozen=True)
class Fitted:
    """How the dictionary was trained. dead: latents without a code in the last tokens. epochs: readings of the training tokens.
    stopped: why before the last step, None if it was not. log: step, active (codes a row), threshold, idle (latents then dead), lr. checked: step,
    unexplained share of held-out tokens' variance."""

    latents: int
    k: int
    batch: int
    steps: int
    epochs: int
    dead: int
    stopped: str | None
    warnings: tuple[str, ...]
    log: Columns
    checked: Columns


@dataclass(frozen=True)
class Passage:
    """A text as a latent reads it. bin: "top", "silent", or between which shares of the latent's largest code it lies. value:
    its largest code here; values: the code at each token shown, 0 where it is silent. folded: near-duplicates not shown."""

    latent: int
    bin: str
    slice: str
    row: int
    value: float
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    folded: int


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both of held-out texts alone.

    explained_change: of each token's change, the part along what the dictionary writes there; its mean square over the base's
    variance. explained_share: of the change's squared norm, what the dictionary gives back; below 0 where it makes it worse.
    latents_share: the same of what is left beside the constant part. codes_per_token: latents that fire at a token.

    rows, held: tokens trained on, and held out. reason: why no dictionary was trained (IDENTICAL, CONSTANT, FEW), "" where one
    was. fitted: None then. latents: one row a latent, see `dictionaries.latents.latent_table`; frequencies are of all texts,
    betas of held-out ones. shown: the latents that are read, best first. words: latent (CONSTANT_PART for the constant part),
    head, sign, rank, token, token_id, logit. token_ids: tokens that can be read; peaks, reach: float32 of each, the largest
    centred logit that a shown latent or the constant part gives it, and the largest of those times its size. constant: the norm of
    the constant part over the root of the base's variance, None where that is 0. lost: tokens whose states were not finite.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    layer: int
    rows: int
    held: int
    reason: str
    fitted: Fitted | None
    constant: float | None
    latents: Columns
    shown: np.ndarray
    words: Columns
    token_ids: np.ndarray
    peaks: np.ndarray
    reach: np.ndarray
    passages: tuple[Passage, ...]
    lost: int
