"""What `crosscoder` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.dictionaries.findings import Fitted, Passage
from finetrace.dictionaries.labelled import LatentLabels

__all__ = ["TAGS", "Result"]

TAGS = ("base-only", "tuned-only", "shared", "other")


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> key -> estimate; both of held-out texts alone.

    explained_change: what of the change of the hidden states lies, token by token, along what the dictionary says the change
    is, squared, over the base's variance. explained_share: of the change's squared norm, what the dictionary gives back; below
    0 where it makes it worse. latents_share: the same of what is left beside the mean change. tuned_only_share: of the tuned
    side's energy (squared code times squared decoder norm, summed over latents), that of confirmed tuned-only latents.
    base_share, tuned_share: of each side's variance, what is given back. codes_per_token: latents that fire at a token.

    rows, held: tokens trained on, and held out. reason: why no dictionary was trained (see `dictionaries.findings`), ""
    where one was. fitted: None then. tags: live latents by tag, and those that are confirmed and shrunk. latents: one row a latent, see
    `dictionaries.latents.latent_table`; frequencies are of all texts, betas of held-out ones. shown: the latents that are
    read, best first. words: latent (CONSTANT_PART for the mean change), head, sign, rank, token, token_id, logit: of what the
    latent writes to the tuned model less what it writes to the base. token_ids, peaks, reach: see
    `dictionaries.words.Words`. labels: None where none
    were asked for, and for nulls. lost: tokens whose states were not finite.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    layer: int
    rows: int
    held: int
    reason: str
    fitted: Fitted | None
    tags: dict[str, int]
    latents: Columns
    shown: np.ndarray
    words: Columns
    token_ids: np.ndarray
    peaks: np.ndarray
    reach: np.ndarray
    passages: tuple[Passage, ...]
    labels: LatentLabels | None
    lost: int
