"""What the results of all methods that train a dictionary hold, and why one may hold no dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from finetrace.core.errors import DataError
from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns

__all__ = [
    "CONSTANT", "CONSTANT_PART", "DEAD", "DIVERGED", "FEW", "IDENTICAL", "LOST", "STILL", "TOGETHER", "Findings", "Fitted", "Passage",
    "Untrainable", "why",
]  # fmt: skip

IDENTICAL, CONSTANT = "identical", "constant"
FEW, LOST, STILL, DEAD, DIVERGED = "few", "lost", "still", "dead", "diverged"
CONSTANT_PART, TOGETHER = -1, -2
"""In the place of a latent: what is written at every token, and that and all latents together."""


class Untrainable(DataError):
    """Rows on which no dictionary can be trained; reason: STILL, DEAD or DIVERGED."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


@dataclass(frozen=True)
class Fitted:
    """How the dictionary was trained. dead: latents without a code in the last tokens. epochs: readings of the training tokens.
    stopped: why before the last step, None if it was not. log: step, active (codes a row), threshold, idle (latents then
    dead), lr. checked: step, and shares of held-out tokens' variance that are not given back."""

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


class Findings(Protocol):
    """numbers, slices: of held-out texts alone. rows, held: tokens trained on, and held out. reason: why no dictionary was
    trained, "" where one was; fitted: None then. latents: one row a latent, see `latents.latent_table`; shown: those that
    are read, best first. words, token_ids, peaks, reach: see `words.Words`. lost: tokens whose states were not finite."""

    @property
    def numbers(self) -> dict[str, Estimate]: ...
    @property
    def slices(self) -> dict[str, dict[str, Estimate]]: ...
    @property
    def layer(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def fitted(self) -> Fitted | None: ...
    @property
    def latents(self) -> Columns: ...
    @property
    def shown(self) -> np.ndarray: ...
    @property
    def words(self) -> Columns: ...
    @property
    def token_ids(self) -> np.ndarray: ...
    @property
    def peaks(self) -> np.ndarray: ...
    @property
    def reach(self) -> np.ndarray: ...
    @property
    def passages(self) -> tuple[Passage, ...]: ...
    @property
    def lost(self) -> int: ...


@dataclass(frozen=True)
class Why:
    """Why there are no figures: in a few words, and what to do about it."""

    short: str
    long: str


def why(reason: str, rows: int) -> Why | None:
    """None where there are figures: IDENTICAL and CONSTANT are findings. rows: tokens to train on."""
    none = "so that no dictionary was trained and there are no figures"
    return {
        FEW: Why(
            f"Too few tokens to train a dictionary on: {rows}.",
            f"{rows} tokens to train on. With fewer tokens than dimensions any direction fits, {none}. Give more texts.",
        ),
        LOST: Why(
            "No hidden states were finite: there is nothing to train a dictionary on.",
            f"No token's hidden states were finite in both models, {none}: try --dtype float32, or look for broken weights.",
        ),
        STILL: Why(
            "What a dictionary would read is the same at every token: none was trained.",
            f"In {rows} tokens to train on, what the dictionary would read is the same at (nearly) every one, {none}. Other texts "
            "or another layer may show something.",
        ),
        DEAD: Why(
            "All latents died in training: there is no dictionary.",
            "All latents died in training, none fired any more, so that there is no dictionary and there are no figures. Fewer "
            "latents or a smaller l1 may help, or more texts.",
        ),
        DIVERGED: Why(
            "The training diverged: there is no dictionary.",
            "The training diverged, so that there is no dictionary and there are no figures: a few tokens' states may be of extreme "
            "size. Another layer, or another dtype, may help.",
        ),
    }.get(reason)
