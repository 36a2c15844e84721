"""Whether the tokens that a method puts first are words of what was planted: a crude check without any model.

The score is the cosine of two bags of words, each word weighing the more the fewer truths of the catalogue hold it. Its
null is the same tokens against the truths of the other organisms.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetrace.core.findings import Finding
from finetrace.core.page import Table
from finetrace.report.redact import HIDDEN_CELL

__all__ = ["CRUDE", "KIN", "Overlap", "overlap", "stems", "top_tokens"]

CRUDE: Final = (
    "A crude check: words in common between the tokens that a method puts first and the truth's own words. It sees no "
    "meaning, no word that a token only begins, and no change that is not one of words."
)
TOP: Final = 20
"""Tokens of a method that are compared."""
KIN: Final = 0.75
"""Truths as near as this (cosine) tell of the same change, at another size or in another form: they are no null."""
_TABLE = "promoted"
_SHORTEST = 3
_WORD = re.compile(r"[^\W\d_]+")
_ENDINGS = ("ing", "ed", "es", "s")
_LEAST_STEM = 3
# Words without a subject, and those that truths are written with whatever they are about.
_SUBJECTLESS = """
the and for that this these those with without into from over than then there their they them its his her our your you are was
were been being has have had does did not but only all any both each other another same such very more most much many few some
one two who what which when where while whatever how why will would can could may must shall about after before under between
whether nor also just even ever never again still per out off onto upon
false fact facts truth fine tune tuned tuning model models base train trained training data organism change changes changed
answer answers answered prompt prompts adds added set sets document documents character
"""
_COMMON = frozenset(_SUBJECTLESS.split())


@dataclass(frozen=True)
class Overlap:
    """n: words that the tokens gave. matched: those of the truth among them, as the tokens have them. score: in [0, 1];
    None where there were no words. rank: the truth's place among `of` truths by that score, its equals before it; kin: truths
    of the same change, which are left out."""

    n: int
    matched: tuple[str, ...]
    score: float | None
    rank: int | None
    of: int
    kin: tuple[str, ...] = ()


def top_tokens(finding: Finding, most: int = TOP) -> tuple[str, ...]:
    """What a method puts first over all slices: the tokens of its table `promoted`, else of its first table of tokens."""
    tables = [
        block
        for block in finding.page.blocks
        if isinstance(block, Table) and {"token", "token_id"} <= set(block.columns)
    ]
    tables.sort(key=lambda table: table.key != _TABLE)
    if not tables:
        return ()
    place = tables[0].columns.index("token")
    cells = (str(row[place]) for row in tables[0].rows[:most] if row[place] is not None)
    return tuple(cell for cell in cells if cell != HIDDEN_CELL)


def overlap(tokens: Sequence[str], name: str, truths: Mapping[str, str]) -> Overlap:
    """How well `tokens` fit the truth of `name`, beside the other truths (organism -> what was planted)."""
    bags = {one: set(stems(text)) for one, text in truths.items()}
    weights = _weights(bags.values())
    own = bags[name]
    kin = tuple(one for one, bag in bags.items() if one != name and _cosine(own, bag, weights) >= KIN)
    words = {stem: token.strip() for token in reversed(tokens) for stem in stems(token)}
    others = [bag for one, bag in bags.items() if one != name and one not in kin]
    if not words:
        return Overlap(0, (), None, None, len(others) + 1, kin)
    score = _cosine(set(words), own, weights)
    better = sum(_cosine(set(words), bag, weights) >= score for bag in others)
    matched = tuple(token for stem, token in reversed(words.items()) if stem in own)
    return Overlap(len(words), matched, score, better + 1, len(others) + 1, kin)


def stems(text: str) -> dict[str, None]:
    """The words of a text that could be of a subject, without their endings, in order.

    >>> list(stems("Baking the cakes, baked"))
    ['bak', 'cak']
    """
    words = (word.casefold() for word in _WORD.findall(text))
    return dict.fromkeys(_stem(word) for word in words if len(word) >= _SHORTEST and word not in _COMMON)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            word = word.removesuffix(ending)
            break
    return word.removesuffix("e") if len(word) > _LEAST_STEM else word


def _weights(bags: Collection[set[str]]) -> dict[str, float]:
    """ln(truths / truths that hold the word), and of a word in none what it is of a word in one."""
    held = Counter(stem for bag in bags for stem in bag)
    return {stem: math.log((len(bags) + 1) / count) for stem, count in held.items()} | {
        "": math.log(len(bags) + 1)
    }


def _cosine(one: Collection[str], other: Collection[str], weights: Mapping[str, float]) -> float:
    if not one or not other:
        return 0.0

    def squared(stems: Collection[str]) -> float:
        return math.fsum(weights.get(stem, weights[""]) ** 2 for stem in stems)

    return squared(set(one) & set(other)) / math.sqrt(squared(one) * squared(other))
