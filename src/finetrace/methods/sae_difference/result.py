"""What `sae_difference` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.dictionaries.findings import Fitted, Passage
from finetrace.dictionaries.labelled import LatentLabels

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both of held-out texts alone.

    explained_change: of each token's change, the part along what the dictionary writes there; its mean square over the base's
    variance. explained_share: of the change's squared norm, what the dictionary gives back; below 0 where it makes it worse.
    latents_share: the same of what is left beside the constant part. codes_per_token: latents that fire at a token.

    rows, held: tokens trained on, and held out. reason: why no dictionary was trained (see `dictionaries.findings`), "" where
    one was. fitted: None then. latents: one row a latent, see `dictionaries.latents.latent_table`; frequencies are of all texts,
    betas of held-out ones. shown: the latents that are read, best first. words: latent (CONSTANT_PART for the constant part),
    head, sign, rank, token, token_id, logit. token_ids, peaks, reach: see `dictionaries.words.Words`. labels: None where none
    were asked for, and for nulls. lost: tokens whose states were not finite.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    layer: int
    rows: int
    held: int
    reason: str
    fitted: Fitted | None
    latents: Columns
    shown: np.ndarray
    words: Columns
    token_ids: np.ndarray
    peaks: np.ndarray
    reach: np.ndarray
    passages: tuple[Passage, ...]
    labels: LatentLabels | None
    lost: int
