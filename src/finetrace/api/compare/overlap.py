"""How alike the tokens are that fine-tunes promote: for `diff_mining`, whose page has a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from finetrace.api.compare.cells import Asked, Read
from finetrace.api.compare.chosen import Placed, Selection
from finetrace.core.comparison import Cell, Overlap
from finetrace.core.page import Table
from finetrace.core.shelf import load

METHOD, TABLE, TOP = "diff_mining", "promoted", 20
# A result holds figures for every token of the vocabulary, so each is read alone and let go: about a second a run.
MOST = 60


def overlap(
    asked: Asked, selection: Selection, found: Sequence[Read], cells: Sequence[Cell]
) -> Overlap | None:
    """Shares of the top tokens that runs of one base have in common; None for another method, one run, or too many."""
    if asked.card.name != METHOD or not 1 < len(cells) <= MOST or len({cell.base for cell in cells}) > 1:
        return None
    kind = asked.card.part("result").Result
    describe = asked.card.part("describe").describe
    sizes: set[int] = set()

    def tokens(run: Placed) -> tuple[str, ...]:
        result = load(run.folder, kind)
        sizes.add(len(result.vocabulary))
        tables = [b for b in describe(result).blocks if isinstance(b, Table) and b.key == TABLE]
        place = tables[0].columns.index("token")
        return tuple(str(row[place]) for row in tables[0].rows[:TOP])

    mine = [tokens(one.run) for one in found]
    nulls = {null.model: null for one in found for null in selection.nulls(one.run)}
    theirs = [tokens(null) for null in nulls.values()]
    beside = [share for ours in mine for null in theirs if (share := _share(ours, null)) is not None]
    shares: list[list[float | None]] = [
        [_share(ours, ours)] * len(cells) for ours in mine
    ]  # the diagonal, for now
    for i, j in combinations(range(len(cells)), 2):
        shares[i][j] = shares[j][i] = _share(mine[i], mine[j])
    names = tuple(cell.label for cell in cells)
    return Overlap(
        names,
        tuple(tuple(row) for row in shares),
        TOP,
        TOP / min(sizes),
        (min(beside), max(beside)) if beside else None,
    )


def _share(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Tokens in both, of as many as the shorter list has; None if one is empty."""
    shorter = min(len(one), len(other))
    return len(set(one) & set(other)) / shorter if shorter else None
