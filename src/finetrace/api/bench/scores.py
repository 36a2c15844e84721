"""How well a method named what was planted: hits among its top tokens, against chance and against every null."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TOP = 20
TIMES_CHANCE, FEWEST = 5.0, 2
"""What a ranking has to reach to count as having named the change; a single token is luck (one list in six has one)."""

Ranking = Callable[[str], Sequence[int]]
"""Side -> the token ids that a method ranks highest on it."""


@dataclass(frozen=True)
class TokenScore:
    """hits: planted tokens among the method's TOP. chance: hits expected of TOP tokens drawn at random. null_hits: what
    each null's own list hits of the *same* planted tokens. named: at least TIMES_CHANCE times chance, and above every
    null. p: share of lists (the nulls' and this one) with as many hits.
    """

    organism: str
    method: str
    where: str
    planted: int
    hits: int
    chance: float
    null_hits: tuple[int, ...]

    @property
    def times_chance(self) -> float:
        return self.hits / self.chance

    @property
    def named(self) -> bool:
        enough = self.hits >= FEWEST and self.times_chance >= TIMES_CHANCE
        return enough and self.hits > max(self.null_hits, default=0)

    @property
    def p(self) -> float | None:
        """One-sided permutation p-value; None without nulls."""
        if not self.null_hits:
            return None
        return (1 + sum(hits >= self.hits for hits in self.null_hits)) / (1 + len(self.null_hits))


def token_score(
    organism: str,
    method: str,
    where: str,
    planted: Sequence[int],
    lists: Mapping[str, Sequence[int]],
    nulls: Sequence[str],
    vocabulary: int,
) -> TokenScore:
    """lists: side -> top token ids. vocabulary: tokens that could have been listed."""
    wanted = set(planted)

    def hits(side: str) -> int:
        return len(wanted & set(lists[side][:TOP]))

    return TokenScore(
        organism=organism,
        method=method,
        where=where,
        planted=len(wanted),
        hits=hits(organism),
        chance=TOP * len(wanted) / vocabulary,
        null_hits=tuple(hits(null) for null in nulls if null != organism),
    )
