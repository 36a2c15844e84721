"""What `diff_mining` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.diff_mining.spans import Span

KEYS = ("promotion_mean", "suppression_mean", "top20_share")
LOGITS_UNIT, SHARE_UNIT = "logits", "share"


@dataclass(frozen=True, eq=False)
class Moves:
    """How every token moved at one slice's positions. Arrays are [vocab], in the order of `Result.vocabulary`; where
    variants are merged, counts stand at the first spelling of a word and are 0 at the others.

    positions: how many. promoted, suppressed: positions at which the token is among the K largest rises, or falls, of the
    centred logits (above 0, or below). net_squares: sum over texts of (promoted - suppressed)^2. as_spelt: entries of
    either kind by spelling, if variants are merged. positive: positions at which its centred logit rose. shift: sum of
    its centred change, logits. kl_up: its part of the sum of KL(tuned||base) where promoted, nats; kl_down: its part
    of the sum of -KL(base||tuned) where suppressed. kl, reverse_kl: these sums over all tokens and positions, nats.
    """

    positions: int
    promoted: np.ndarray
    suppressed: np.ndarray
    net_squares: np.ndarray
    as_spelt: np.ndarray
    positive: np.ndarray
    shift: np.ndarray
    kl_up: np.ndarray
    kl_down: np.ndarray
    kl: float
    reverse_kl: float


@dataclass(frozen=True)
class Topic:
    """Tokens that rise together. tokens, token_ids, weights: its heaviest, weights summing to 1 over all its tokens.

    mass: its share of what all topics explain. prevalence: share of sampled positions at which it is the largest.
    concentration: 1 - entropy of the weights / log(tokens): 0 even, 1 a single token. stability: correlation of its
    weights between the two halves of the texts. slices: slice -> share of the topic's mass.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    mass: float
    prevalence: float
    concentration: float
    stability: float
    slices: dict[str, float]


@dataclass(frozen=True, eq=False)
class Topics:
    """found: heaviest first. cosine: [topic, topic] between their weights. positions, candidates: rows and columns of the
    factorised matrix. tried: number of topics -> the least stable one's correlation. reason: why there are none, or
    no more."""

    found: tuple[Topic, ...]
    cosine: np.ndarray
    positions: int
    candidates: int
    tried: dict[str, float]
    reason: str


@dataclass(frozen=True, eq=False)
class Shortlist:
    """Some tokens at the sampled positions. tokens, token_ids, asked: each, and whether the user named it. unknown: words
    asked for that are no token. by_slice: int64 [token, slice] positions at which it is promoted; by_position: int64
    [token, LEADING + 1], the last for all later ones. positions, texts: sampled, with any promoted token. together:
    int64 [token, token] positions at which both are promoted (the diagonal: each alone). together_texts: texts in which
    both are, somewhere. sampled_slices, sampled_positions: what by_slice and by_position are out of."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    asked: tuple[bool, ...]
    unknown: tuple[str, ...]
    by_slice: np.ndarray
    by_position: np.ndarray
    together: np.ndarray
    together_texts: np.ndarray
    sampled_slices: np.ndarray
    sampled_positions: np.ndarray
    positions: int
    texts: int


@dataclass(frozen=True)
class Settings:
    """What the page has to say of how it came about. k: tokens of a top list. layer: None for the models' own logits.
    masked: tokens left out. allowed: tokens left. whole: the base's whole vocabulary is shared."""

    k: int
    layer: float | None
    ordering: str
    rows: int
    merged: bool
    span: int
    stride: int
    masked: int
    allowed: int


@dataclass(frozen=True)
class Result:
    """numbers: all slices together; slices: slice -> the same keys. promotion_mean: mean over positions of the mean of the
    K largest rises of centred logits, logits; suppression_mean: of the K largest falls, as a positive size; top20_share:
    share of the promoted entries at sampled positions that fall to the slice's 20 commonest tokens.

    vocabulary: token_id, token, masked; one row a column of the logits. moves: slice -> how each token moved. density:
    slice -> int64 [LEADING, bins] promoted entries by position and log2 of their rise (see `counts.LOG2_EDGES`).
    span_texts: slice -> texts long enough for a window. texts: one row a text: corpus row, slice, positions, its own
    means. unscored: slice -> positions without finite logits, which are in no figure.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    settings: Settings
    vocabulary: Columns
    moves: dict[str, Moves]
    density: dict[str, np.ndarray]
    topics: Topics
    shortlist: Shortlist
    spans: tuple[Span, ...]
    span_texts: dict[str, int]
    texts: Columns
    unscored: dict[str, int]
