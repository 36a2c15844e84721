"""Token tables: what rose and fell, in which orders, beside the nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.methods.diff_mining import ORDERINGS
from finetrace.methods.diff_mining.ranking import Q, best, moves_of, side, spelt, token_texts
from finetrace.methods.diff_mining.result import Result
from finetrace.stats.moderated import z_against

COLUMNS = (
    "token",
    "token_id",
    "count",
    "rate",
    "enrichment",
    "q",
    "fraction_positive",
    "kl_share",
    "mean_shift",
)
AGAINST = ("null_low", "null_high", "null_z")
_COMPARED = 10


@dataclass(frozen=True)
class Against:
    """A token's rate beside the nulls'. z: on the root of rates, whose spread does not grow with them; None with fewer
    than two nulls."""

    low: np.ndarray
    high: np.ndarray
    z: np.ndarray | None
    k: int


def against(result: Result, nulls: Sequence[Result], where: str | None, up: bool) -> Against | None:
    """None without nulls that read any position of the slice."""
    rates = [side(m, up).rate for null in nulls if (m := moves_of(null, where)).positions]
    if not rates:
        return None
    known = np.stack(rates)
    z = z_against(np.sqrt(side(moves_of(result, where), up).rate), np.sqrt(known))
    return Against(known.min(0), known.max(0), z, len(rates))


def tokens_table(result: Result, nulls: Sequence[Result], where: str | None, up: bool) -> Table:
    """The first tokens of one direction on a slice, or with None on all together."""
    name = "promoted" if up else "suppressed"
    moves = moves_of(result, where)
    found, beside = side(moves, up), against(result, nulls, where, up) if moves.positions else None
    columns = best(result, moves, up, result.settings.rows) if moves.positions else np.zeros(0, np.int64)
    spelling = spelt(result, moves)
    ids, texts = result.vocabulary.data["token_id"], token_texts(result)
    fraction = moves.positive / max(moves.positions, 1)
    shift = moves.shift / max(moves.positions, 1)
    rows: list[tuple[Cell, ...]] = []
    for c in columns.tolist():
        shown = int(spelling[c])
        row: list[Cell] = [texts[shown], int(ids[shown]), int(found.count[c]), float(found.rate[c])]
        row += [_plain(found.enrichment[c]), _plain(found.q[c]), float(fraction[shown])]
        row += [_plain(found.kl_share[c]), float(shift[shown])]
        if beside is not None:
            row += [
                float(beside.low[c]),
                float(beside.high[c]),
                None if beside.z is None else float(beside.z[c]),
            ]
        rows.append(tuple(row))
    heads = COLUMNS if beside is None else COLUMNS + AGAINST
    title = f"{name.capitalize()} tokens, " + ("all slices together" if where is None else f"slice {where}")
    key = name if where is None else f"{name}_{where}"
    return Table(key, title, heads, tuple(rows), _note(result, moves.positions, up, beside))


def _note(result: Result, positions: int, up: bool, beside: Against | None) -> str:
    k, way = result.settings.k, "rises" if up else "falls"
    note = (
        f"count: positions, of {positions:,}, at which the token is among the {k} largest {way} of the centred logits; "
        f"enrichment: that, over how often it is among the {k} largest {'falls' if up else 'rises'}; q: of more of the one "
        "than of the other, over texts (Benjamini-Hochberg over tokens); kl_share: part of the slice's "
        f"{'KL(tuned‖base)' if up else 'KL(base‖tuned)'} that the token makes up there; mean_shift: logits. "
        f"Sorted by {result.settings.ordering}."
    )
    if beside is None:
        return note + " q does not say that a harmless fine-tune would leave the token alone: only nulls do."
    return (
        note
        + f" null_low to null_high: rates on {beside.k} nulls; null_z: this rate as one more draw beside theirs."
    )


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def orderings_table(result: Result, up: bool = True) -> Table:
    """The first tokens under every ordering, side by side: all come from the one pass."""
    moves, texts = moves_of(result, None), token_texts(result)
    spelling = spelt(result, moves)
    lists = []
    for ordering in ORDERINGS:
        first = best(result, moves, up, _COMPARED, ordering) if moves.positions else np.zeros(0, np.int64)
        lists.append([texts[i] for i in spelling[first]])
    depth = max(map(len, lists))
    rows = tuple(
        (rank + 1, *(names[rank] if rank < len(names) else None for names in lists)) for rank in range(depth)
    )
    note = f"Promoted tokens, all slices together. enrichment: among tokens with q <= {Q}."
    return Table("orderings", "The same tokens in other orders", ("rank", *ORDERINGS), rows, note)


def topics_table(result: Result) -> Table:
    found = result.topics
    rows = tuple(
        (
            i + 1,
            " · ".join(token.strip() or token for token in t.tokens),
            t.mass,
            t.prevalence,
            t.concentration,
            t.stability,
            *t.slices.values(),
        )
        for i, t in enumerate(found.found)
    )
    columns = ("topic", "tokens", "mass", "prevalence", "concentration", "stability")
    note = (
        f"Tokens that rise together at {found.positions:,} sampled positions, of {found.candidates:,} enriched tokens: "
        f"{found.reason}. mass: share of what the topics explain; prevalence: share of positions where it is the largest; "
        "concentration: 1 for a single token, 0 for all alike; stability: correlation between the two halves of the "
        "texts; then the topic's share by slice."
    )
    return Table("topics", "Topics", columns + tuple(result.moves), rows, note)


def shortlist_table(result: Result) -> Table:
    found = result.shortlist
    early = found.sampled_positions[:-1].sum()
    rows: list[tuple[Cell, ...]] = []
    for i, token in enumerate(found.tokens):
        shares = found.by_slice[i] / np.where(found.sampled_slices > 0, found.sampled_slices, np.nan)
        first = _plain(found.by_position[i, :-1].sum() / early) if early else None
        rows.append(
            (
                token,
                found.token_ids[i],
                found.asked[i],
                int(found.by_slice[i].sum()),
                first,
                *map(_plain, shares),
            )
        )
    columns = (
        "token",
        "token_id",
        "asked",
        "sampled_count",
        "rate_early",
        *(f"rate_{s}" for s in result.moves),
    )
    note = (
        f"At {found.positions:,} sampled positions of {found.texts:,} texts. rate_early: share of sampled positions among "
        "the first 16 of a text; then by slice."
    )
    return Table("shortlist", "Shortlist", columns, tuple(rows), note)


def pairs_table(result: Result) -> Table:
    """Pairs of the shortlist, by how far they are from what independent tokens would do."""
    found = result.shortlist
    n, texts = max(found.positions, 1), max(found.texts, 1)
    alone, alone_texts = np.diagonal(found.together), np.diagonal(found.together_texts)
    rows: list[tuple[Cell, ...]] = []
    for i in range(len(found.tokens)):
        for j in range(i):
            both, expected = int(found.together[i, j]), float(alone[i] * alone[j] / n)
            both_texts, expected_texts = (
                int(found.together_texts[i, j]),
                float(alone_texts[i] * alone_texts[j] / texts),
            )
            lift = both / expected if expected else None
            rows.append((found.tokens[j], found.tokens[i], both, expected, lift, both_texts, expected_texts))
    rows.sort(key=lambda r: -abs((r[2] - r[3]) / max(r[3], 1) ** 0.5))  # pyright: ignore
    note = f"Positions, of {found.positions:,}, and texts, of {found.texts:,}; expected: if the two had nothing to do with one another."
    columns = ("token", "with", "together", "expected", "lift", "texts", "texts_expected")
    return Table("pairs", "Shortlisted tokens together", columns, tuple(rows[:30]), note)
