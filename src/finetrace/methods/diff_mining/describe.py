"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from finetrace.core.page import (
    Block,
    Figure,
    Heatmap,
    Number,
    Page,
    Passage,
    Scatter,
    Series,
    Table,
    Warning,
)
from finetrace.methods.diff_mining.counts import LEADING, LOG2_EDGES
from finetrace.methods.diff_mining.ranking import best, moves_of, side, spelt, token_texts
from finetrace.methods.diff_mining.result import KEYS, Result
from finetrace.methods.diff_mining.tables import (
    orderings_table,
    pairs_table,
    shortlist_table,
    tokens_table,
    topics_table,
)

LABELS = {
    "promotion_mean": (
        "Promotion",
        "How far the tokens that rise most at a position rise, on average: centred logits.",
    ),
    "suppression_mean": ("Suppression", "The same for the tokens that fall most."),
    "top20_share": (
        "Held by 20 tokens",
        "Share of the promoted entries at sampled positions that fall to the slice's 20 commonest: near 1, the same few "
        "tokens rise everywhere.",
    ),
}
FEW_TEXTS = 20
# From this share of the allowed vocabulary on, half of it is in one list or the other.
_TOO_MANY = 0.25
_NAMED, _DRAWN = 6, 300


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, then tokens beside the nulls, topics, and where in the texts it happens. nulls: the same method's results
    on harmless fine-tunes of the same base."""
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in KEYS]
    blocks += _warnings(result)
    blocks += [tokens_table(result, nulls, None, up) for up in (True, False)]
    if result.topics.found:
        blocks.append(topics_table(result))
    if len(result.topics.found) > 1:
        blocks.append(_cosines(result))
    blocks += [orderings_table(result), _scatter(result), _density(result)]
    if len(result.moves) > 1:
        blocks += [tokens_table(result, nulls, name, up) for name in result.moves for up in (True, False)]
    if result.shortlist.tokens:
        blocks += [shortlist_table(result), pairs_table(result)]
    blocks += [_slices(result), *_passages(result)]
    return Page("Diff mining", _summary(result, nulls), tuple(blocks))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    moves = moves_of(result, None)
    if not moves.positions:
        return "No position was scored."
    columns = best(result, moves, True, 8)
    if not len(columns):
        return "No token's logit rose anywhere: the two models predict the same."
    texts = token_texts(result)
    names = ", ".join(f"“{texts[i].strip() or texts[i]}”" for i in spelt(result, moves)[columns])
    n, share = moves.positions, side(moves, True).rate[columns[0]]
    found = len(result.topics.found)
    topics = (
        "No stable topic was found" if not found else f"{found} stable topic{'s' * (found > 1)} was found"
    )
    topics = topics.replace("s was", "s were")
    beside = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"The tokens that rise most are {names}; the first is among the {result.settings.k} largest rises at {share:.0%} "
        f"of {n:,} positions. {topics}.{beside}"
    )


def _warnings(result: Result) -> list[Block]:
    settings, found = result.settings, []
    lost = {name: n for name, n in result.unscored.items() if n}
    if lost:
        where = ", ".join(f"{n} on {name}" for name, n in lost.items())
        found.append(
            f"Some positions gave no finite logits and are in no figure ({where}): try --dtype float32."
        )
    few = [name for name, keys in result.slices.items() if 0 < keys["promotion_mean"].texts < FEW_TEXTS]
    if few:
        found.append(
            f"Fewer than {FEW_TEXTS} texts on {', '.join(few)}: intervals there are rough, and few tokens can reach a "
            "small q."
        )
    if settings.k > _TOO_MANY * settings.allowed:
        found.append(
            f"The {settings.k} largest rises and falls are much of a vocabulary of {settings.allowed} tokens: being among "
            "them says little. Set top_k lower."
        )
    if settings.masked > settings.allowed:
        found.append(
            f"More tokens are left out ({settings.masked}, special or never trained) than are left in ({settings.allowed})."
        )
    if result.shortlist.unknown:
        words = ", ".join(f"“{word}”" for word in result.shortlist.unknown)
        found.append(f"No single token spells {words}: only whole tokens can be on the shortlist.")
    return [Warning(text) for text in found]


def _cosines(result: Result) -> Figure:
    names = tuple(f"{i + 1}: {t.tokens[0] if t.tokens else ''}" for i, t in enumerate(result.topics.found))
    values = tuple(tuple(float(v) for v in row) for row in result.topics.cosine)
    return Figure(
        "topic_cosines",
        "How alike the topics are",
        Heatmap(names, names, values),
        "topic",
        "topic",
        "Cosine between the topics' token weights: 0, they share no token.",
        spells=True,
    )


def _scatter(result: Result) -> Figure:
    """The busiest tokens; the first few by name, which is all that a legend holds."""
    moves = moves_of(result, None)
    n, texts = max(moves.positions, 1), token_texts(result)
    named = best(result, moves, True, _NAMED) if moves.positions else np.zeros(0, np.int64)
    busiest = np.argsort(-(moves.promoted + moves.suppressed), kind="stable")[:_DRAWN]
    busiest = busiest[(moves.promoted + moves.suppressed)[busiest] > 0]
    others = np.setdiff1d(busiest, named)
    spelling = spelt(result, moves)

    def points(name: str, columns: np.ndarray) -> Series:
        rate, shift = moves.promoted[columns] / n, moves.shift[spelling[columns]] / n
        return Series(name, tuple(map(float, shift)), tuple(map(float, rate)))

    series = [points(texts[int(spelling[c])], np.array([c])) for c in named]
    return Figure(
        "tokens",
        "How often and how far tokens rise",
        Scatter((*series, points("other tokens", others))),
        "mean shift of the centred logit",
        "share of positions at which promoted",
        f"All slices together. Above right: up everywhere; above left: up at some positions and down on average. The "
        f"{len(others) + len(named)} busiest tokens.",
        spells=True,
    )


def _density(result: Result) -> Figure:
    total = np.sum(list(result.density.values()), axis=0)
    used = np.flatnonzero(total.sum(0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    edges = [f"{2.0**e:.3g}" for e in LOG2_EDGES]
    names = [f"< {edges[0]}", *(f"{a}–{b}" for a, b in pairwise(edges)), f"> {edges[-1]}"]
    columns = total.sum(1, keepdims=True)
    shares = np.divide(total, columns, out=np.full(total.shape, np.nan), where=columns > 0)
    values = tuple(
        tuple(float(v) if np.isfinite(v) else None for v in shares[:, b]) for b in range(low, high)
    )
    return Figure(
        "density",
        "Sizes of the rises, by position",
        Heatmap(tuple(str(p) for p in range(LEADING)), tuple(names[low:high]), values),
        "position in the text",
        "rise of a promoted token, logits",
        f"Share of the promoted entries at each of the first {LEADING} positions. A change that is larger at the start is a "
        "change of how answers begin.",
    )


def _slices(result: Result) -> Table:
    rows = []
    for name, keys in result.slices.items():
        first = keys["promotion_mean"]
        row = [keys[key].value for key in KEYS]
        rows.append((name, *row, first.low, first.high, first.n, first.clusters, result.span_texts[name]))
    columns = ("slice", *KEYS, "promotion_low", "promotion_high", "positions", "texts", "texts_with_windows")
    note = f"Logits; 95% intervals over texts. texts_with_windows: long enough for a span of {result.settings.span}."
    return Table("slices", "By slice", columns, tuple(rows), note)


def _passages(result: Result) -> list[Passage]:
    return [
        Passage(
            title=f"{s.slice}, text {s.row}: {s.score:+.3g} nats over {s.stop - s.start} tokens, q {s.q:.2g}",
            tokens=s.tokens,
            values=s.values,
            unit="nats, log p(tuned) − log p(base) of this token",
            slice=s.slice,
            note=f"The window is “{''.join(s.tokens[s.start : s.stop])}”. q: the estimated share of texts that score so by "
            "chance, taking scores that mean nothing for symmetric about the slice's median.",
        )
        for s in result.spans
    ]
