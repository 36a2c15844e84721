"""Topics: tokens that rise together, by factorising the sparse matrix of sampled positions x promoted tokens.

X ~ W H, all >= 0. Only tokens that rise more often than they fall (q <= 0.05, over texts) are columns: tokens that merely
move much are in both lists, and would be the topics of pure noise. The number of topics is the largest for which

- every topic found in one half of the texts is found again in the other (Hungarian matching, correlation over tokens);
- the last topic explains more than it does where nothing rises *together*: in the same columns, each shuffled over the
  positions by itself. Stability alone proves nothing: there too, every heavy token makes a stable topic of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from finetrace.engine import Subject
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.ranking import Q, side
from finetrace.methods.diff_mining.result import Moves, Topic, Topics
from finetrace.methods.diff_mining.variants import groups, shown

# A topic is stable if its weights in the two halves correlate so much; and explains enough if it takes so many times as
# much off the squared error as in the shuffled columns.
STABLE, TOGETHER = 0.8, 1.25
# No more topics than this are looked for, nor tokens looked at; fewer positions than this are too few.
MOST_TOPICS, MOST_TOKENS, FEWEST_POSITIONS = 6, 2000, 50
_SHOWN = 12
# Rounds of a trial, which only has to tell topics apart, and of the factorisation that is shown.
_TRIAL, _ROUNDS = 30, 200
_TINY = 1e-12

Sample = dict[str, np.ndarray]
Sparse = Any  # scipy's csr_matrix, whose stubs know no shapes


@dataclass(frozen=True, eq=False)
class Factors:
    """positions [position, topic] and tokens [topic, token], both >= 0; explained: share of the sum of squares."""

    positions: Float[np.ndarray, "position topic"]
    tokens: Float[np.ndarray, "topic token"]
    explained: float


def find_topics(config: Config, subject: Subject, sample: Sample, moves: list[Moves], whole: Moves) -> Topics:
    """sample: see `Sample.columns`. moves: by slice; whole: all together."""
    columns = enriched([*moves, whole], whole)
    x, rows = matrix(sample, columns, len(whole.promoted))
    size = {"positions": len(rows), "candidates": len(columns)}
    if len(rows) < FEWEST_POSITIONS or len(columns) < 2:
        what = f"{len(rows)} sampled positions with one of {len(columns)} enriched tokens"
        return Topics((), np.zeros((0, 0)), **size, tried={}, reason=f"too little to factorise: {what}")
    half = (sample["key"][rows] >> np.uint64(7)) & np.uint64(1)
    tried = trials(x, half, len(whole.promoted), subject.seed, config.topics, config.orthogonal)
    chosen = config.topics or max((k for k, t in tried.items() if t.holds), default=0)
    correlations = {str(k): float(t.stability.min()) for k, t in tried.items()}
    if not chosen:
        reason = "no number of topics is stable and explains more than tokens that rise by themselves"
        return Topics((), np.zeros((0, 0)), **size, tried=correlations, reason=reason)
    chosen = min(chosen, *x.shape)
    factors = factorise(x, chosen, subject.seed, config.orthogonal)
    stability = _match(factors.tokens, tried[chosen].half, len(whole.promoted))
    spelling = (
        shown(groups(subject.vocabulary.texts, True), whole.as_spelt) if config.merge_variants else None
    )
    named = columns if spelling is None else spelling[columns]
    order = np.argsort(-_masses(factors), kind="stable")
    found = tuple(
        _topic(
            factors,
            int(t),
            float(tried[chosen].stability[stability[t]]),
            subject,
            named,
            sample["slice"][rows],
        )
        for t in order
    )
    unit = factors.tokens[order] / np.maximum(
        np.linalg.norm(factors.tokens[order], axis=1, keepdims=True), _TINY
    )
    return Topics(found, unit @ unit.T, **size, tried=correlations, reason=_why(config, chosen, tried))


def enriched(moves: list[Moves], whole: Moves) -> Int[np.ndarray, " token"]:
    """Columns of tokens that rise more often than they fall, all together or on a slice, most net rises first; the level
    is shared out among these looks."""
    q = np.min([np.nan_to_num(side(m, True).q, nan=1.0) for m in moves], axis=0)
    columns = np.flatnonzero((q <= Q / len(moves)) & (whole.promoted > 0))
    net = (whole.promoted - whole.suppressed)[columns]
    return columns[np.argsort(-net, kind="stable")][:MOST_TOKENS]


def matrix(
    sample: Sample, columns: Int[np.ndarray, " token"], vocab: int
) -> tuple[Sparse, NDArray[np.int64]]:
    """Rises in logits [position, token] of the tokens in `columns`, and which sampled positions have one of them."""
    from scipy.sparse import csr_matrix

    place = np.full(vocab + 1, -1)
    place[columns] = np.arange(len(columns))
    at = place[sample["ids"]]  # -1, no entry, looks up the last place, which is none
    row, entry = np.nonzero(at >= 0)
    rows, compact = np.unique(row, return_inverse=True)
    values = sample["values"][row, entry].astype(np.float64)
    return csr_matrix((values, (compact, at[row, entry])), shape=(len(rows), len(columns))), rows


@dataclass(frozen=True, eq=False)
class Trial:
    """One number of topics on both halves. stability: [topic] correlations of each of the first half's with its match;
    half: that half's weights [topic, token]. holds: stable, and more than tokens that rise by themselves."""

    stability: Float[np.ndarray, " topic"]
    half: Float[np.ndarray, "topic token"]
    holds: bool


def trials(
    x: Sparse,
    half: NDArray[np.uint64],
    vocab: int,
    seed: int,
    wanted: int = 0,
    orthogonal: bool = False,
) -> dict[int, Trial]:
    """half: 0 or 1 for each position, the same within a text. wanted: try this number only; 0: 1, 2, ... until two in a
    row do not hold."""
    halves = [x[half == side] for side in (0, 1)]
    if min(len(part.indptr) - 1 for part in halves) < 2:
        halves = [x, x]
    random = np.random.default_rng(seed)
    loose = [_shuffled(part, random) for part in halves]
    most = min(MOST_TOPICS, x.shape[1], *(part.shape[0] for part in halves))
    found: dict[int, Trial] = {}
    before = [0.0, 0.0]
    for k in (wanted,) if wanted else range(1, most + 1):
        both = [factorise(part, k, seed, orthogonal, _TRIAL) for part in halves]
        apart = [factorise(part, k, seed, orthogonal, _TRIAL) for part in loose]
        now = [sum(f.explained for f in factors) for factors in (both, apart)]
        gain, by_chance = now[0] - before[0], now[1] - before[1]
        correlation = _correlations(both[0].tokens, both[1].tokens, vocab)
        matched = _assign(correlation)
        stability = correlation[np.arange(k), matched]
        enough = gain > TOGETHER * by_chance
        found[k] = Trial(stability, both[0].tokens, bool(enough and stability.min() >= STABLE))
        if k - 1 in found and not (found[k].holds or found[k - 1].holds):
            break
        before = now
    return found


def _shuffled(x: Sparse, random: np.random.Generator) -> Sparse:
    """Every column's values at other rows, drawn for that column alone."""
    loose = x.tocsc().copy()
    for column in range(x.shape[1]):
        start, stop = loose.indptr[column : column + 2]
        loose.indices[start:stop] = random.choice(x.shape[0], stop - start, replace=False)
    loose.has_sorted_indices = False
    loose.sort_indices()
    return loose.tocsr()


def factorise(x: Sparse, topics: int, seed: int, orthogonal: bool = False, rounds: int = _ROUNDS) -> Factors:
    """X ~ positions @ tokens, least squares: coordinate descent on the sparse matrix from a start that the seed fixes."""
    from sklearn.decomposition import NMF

    if orthogonal:
        return _orthogonal(x, topics, seed, rounds)
    start = "nndsvda" if topics < min(x.shape) else "random"
    options: dict[str, Any] = {"init": start, "random_state": seed % 2**32, "max_iter": rounds, "tol": 1e-3}
    model = NMF(n_components=topics, **options)  # pyright: ignore[reportArgumentType]
    with _unconverged():
        positions = model.fit_transform(x)
    return _factors(x, positions, model.components_)


@contextmanager
def _unconverged() -> Iterator[None]:
    """A fit that stops at the last round is as good as its error says, which is what it is judged by."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _orthogonal(x: Sparse, topics: int, seed: int, rounds: int) -> Factors:
    """The same with topics that hardly share tokens, H H^T = I, by multiplicative updates.

    Source: Ding, Li, Peng & Park 2006, "Orthogonal nonnegative matrix tri-factorizations for clustering", from the
    plain factors.
    """
    plain = factorise(x, topics, seed, rounds=rounds)
    w, h = plain.positions + 1e-3 * plain.positions.mean(), plain.tokens + 1e-3 * plain.tokens.mean()
    for _ in range(rounds):
        w *= (x @ h.T) / np.maximum(w @ (h @ h.T), _TINY)
        pull = (x.T @ w).T
        h *= np.sqrt(pull / np.maximum((pull @ h.T) @ h, _TINY))
    return _factors(x, w, h)


def _factors(x: Sparse, positions: np.ndarray, tokens: np.ndarray) -> Factors:
    total = float(x.multiply(x).sum())
    cross = float(((x @ tokens.T) * positions).sum())
    own = float(((positions.T @ positions) * (tokens @ tokens.T)).sum())
    return Factors(positions, tokens, (2 * cross - own) / (total or 1.0))


def _correlations(
    one: Float[np.ndarray, "topic token"], other: Float[np.ndarray, "topic token"], vocab: int
) -> Float[np.ndarray, "topic topic"]:
    """Pearson's, over the vocabulary, where tokens that are no candidates weigh 0: weights that are all alike would
    correlate with nothing among themselves, and have cosine 1 with anything."""
    mean = np.outer(one.sum(1), other.sum(1)) / vocab
    spread = [np.sqrt(np.maximum((w**2).sum(1) - w.sum(1) ** 2 / vocab, 0)) for w in (one, other)]
    return (one @ other.T - mean) / np.maximum(np.outer(*spread), _TINY)


def _assign(correlation: Float[np.ndarray, "topic topic"]) -> Int[np.ndarray, " topic"]:
    """The Hungarian matching: for each row its column."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(-correlation)[1]


def _match(tokens: np.ndarray, half: np.ndarray, vocab: int) -> Int[np.ndarray, " topic"]:
    """For each topic of the whole the topic of the first half that it is."""
    return _assign(_correlations(tokens, half, vocab))


def _masses(factors: Factors) -> Float[np.ndarray, " topic"]:
    return factors.positions.sum(0) * factors.tokens.sum(1)


def _topic(
    factors: Factors, t: int, stability: float, subject: Subject, named: np.ndarray, slices: np.ndarray
) -> Topic:
    """named: the vocabulary's column of each candidate. slices: of each position."""
    weights = factors.tokens[t] / max(float(factors.tokens[t].sum()), _TINY)
    heaviest = np.argsort(-weights, kind="stable")[:_SHOWN]
    heaviest = heaviest[weights[heaviest] > 0]
    parts = factors.positions * factors.tokens.sum(1)
    entropy = -float((weights * np.log(np.maximum(weights, _TINY))).sum())
    by_slice = np.bincount(slices, weights=parts[:, t], minlength=len(subject.slices))
    return Topic(
        tokens=tuple(subject.vocabulary.texts[named[i]] for i in heaviest),
        token_ids=tuple(int(subject.vocabulary.ids[named[i]]) for i in heaviest),
        weights=tuple(float(weights[i]) for i in heaviest),
        mass=float(parts[:, t].sum() / max(float(parts.sum()), _TINY)),
        prevalence=float(((parts.argmax(1) == t) & (parts[:, t] > 0)).mean()),
        concentration=max(0.0, 1 - entropy / float(np.log(len(weights)))),
        stability=stability,
        slices={
            name: float(part / max(float(by_slice.sum()), _TINY))
            for name, part in zip(subject.slices, by_slice, strict=True)
        },
    )


def _why(config: Config, chosen: int, tried: dict[int, Trial]) -> str:
    if config.topics:
        return f"{chosen} topics, as asked for"
    if chosen == max(tried):
        return f"{chosen} topics, the most that are looked for"
    return f"{chosen} topics: one more is not stable, or explains no more than tokens that rise by themselves"
