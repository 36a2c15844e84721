"""Tokens in order: what the tables show, and what is scored against planted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from finetrace.methods.diff_mining.result import Moves, Result
from finetrace.methods.diff_mining.variants import groups, shown
from finetrace.stats import benjamini_hochberg
from finetrace.stats.signs import sign_symmetry

# A token is called enriched from here on.
Q = 0.05
# What is added to both counts of a ratio, so that it exists where one is 0.
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Side:
    """One direction, [vocab] each, as positive sizes: counts, rate per position, the same less the other direction's (its
    base rate), enrichment over the other direction's count, q of that, share of positions that moved this way, share of
    the slice's KL, mean shift in logits."""

    count: NDArray[np.int64]
    rate: NDArray[np.float64]
    net_rate: NDArray[np.float64]
    enrichment: NDArray[np.float64]
    q: NDArray[np.float64]
    fraction: NDArray[np.float64]
    kl_share: NDArray[np.float64]
    shift: NDArray[np.float64]


def together(moves: Sequence[Moves]) -> Moves:
    """All slices as one."""
    sums = {f.name: sum(getattr(m, f.name) for m in moves) for f in fields(Moves)}
    return Moves(**sums)  # pyright: ignore[reportArgumentType]


def moves_of(result: Result, where: str | None) -> Moves:
    """A slice's, or with None all together."""
    return together(list(result.moves.values())) if where is None else result.moves[where]


def side(moves: Moves, up: bool) -> Side:
    """Promotion (up) or suppression. Rates are nan where there are no positions."""
    n = moves.positions or np.nan
    net = (moves.promoted - moves.suppressed).astype(np.float64) * (1 if up else -1)
    count, other = (moves.promoted, moves.suppressed) if up else (moves.suppressed, moves.promoted)
    total = moves.kl if up else -moves.reverse_kl
    return Side(
        count=count,
        rate=count / n,
        net_rate=net / n,
        enrichment=(count + _HALF) / (other + _HALF),
        q=benjamini_hochberg(sign_symmetry(net, moves.net_squares)),
        fraction=moves.positive / n if up else 1 - moves.positive / n,
        kl_share=(moves.kl_up if up else moves.kl_down) / (total or np.nan),
        shift=moves.shift / n * (1 if up else -1),
    )


def score(found: Side, ordering: str) -> NDArray[np.float64]:
    """[vocab], higher is further up; -inf is not in the list.

    combined: the geometric mean of how often a token rises beyond its base rate and of its share of the KL. The first
    alone lists tokens that nobody would see, the second what is said anyway; each keeps the other's out.
    """
    present = found.count > 0
    if ordering == "enrichment":
        return np.where(present & (found.q <= Q), found.enrichment, -np.inf)
    values = {
        "combined": np.sqrt(np.maximum(found.net_rate, 0) * np.maximum(found.kl_share, 0)),
        "occurrence": found.rate,
        "fraction_positive": found.fraction,
        "kl_weighted": found.kl_share,
        "mean_shift": found.shift,
    }[ordering]
    return np.where(present & np.isfinite(values), values, -np.inf)


def best(result: Result, moves: Moves, up: bool, n: int, ordering: str | None = None) -> NDArray[np.int64]:
    """The columns of the n first tokens; ties go to the lowest column."""
    scores = score(side(moves, up), ordering or result.settings.ordering)
    order = np.argsort(-scores, kind="stable")[:n]
    return order[scores[order] > -np.inf]


def token_texts(result: Result) -> list[str]:
    """[vocab] the text of each column."""
    return list(result.vocabulary.data["token"])


def spelt(result: Result, moves: Moves) -> NDArray[np.int64]:
    """For each column the one whose text is shown for it: itself, unless variants are merged."""
    texts = token_texts(result)
    return shown(groups(texts, True), moves.as_spelt) if result.settings.merged else np.arange(len(texts))


def top_tokens(result: Result, where: str, n: int = 20, nulls: Sequence[Result] = ()) -> tuple[int, ...]:
    """The ids of the n most promoted tokens of slice `where`, best first, in the ordering that the result was made with.

    It is the list that the page shows: nulls stand beside it and do not reorder it (see the README for what that gave).
    """
    moves = moves_of(result, where)
    columns = spelt(result, moves)[best(result, moves, True, n)]
    ids = np.asarray(result.vocabulary.data["token_id"])
    return tuple(int(i) for i in ids[columns])
