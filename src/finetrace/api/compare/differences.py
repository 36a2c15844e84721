"""How far two runs lie apart, where both read the same texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from finetrace.api.compare.cells import Asked, Read
from finetrace.api.compare.protocol import same_texts
from finetrace.core.comparison import Cell, Difference
from finetrace.core.estimate import Estimate
from finetrace.stats import benjamini_hochberg, replicate_difference

# 60 runs make 1,770 pairs: more than anyone reads.
MOST = 60


def differences(
    asked: Asked, found: Sequence[Read], cells: Sequence[Cell]
) -> tuple[tuple[Difference, ...], str]:
    """Every pair of runs that can be paired, and why there are none."""
    if len(cells) < 2:
        return (), "there is one run"
    if len(cells) > MOST:
        return (), f"{len(cells)} runs make too many pairs: name {MOST} or fewer"
    made = [
        (first, second, one)
        for first, second in combinations(range(len(cells)), 2)
        if same_texts(found[first].run, found[second].run)
        and (
            one := _difference(
                _figure(asked, cells[first], found[first]), _figure(asked, cells[second], found[second])
            )
        )
    ]
    if not made:
        return (), "no two runs read the same texts with replicates to pair them by"
    p = [math.nan if one[3] is None else one[3] for _, _, one in made]
    q = benjamini_hochberg(p)
    return tuple(
        Difference(cells[i].label, cells[j].label, *one, None if math.isnan(corrected) else float(corrected))
        for (i, j, one), corrected in zip(made, q, strict=True)
    ), ""


def _figure(asked: Asked, cell: Cell, one: Read) -> Estimate:
    """The estimate with its replicates; without them where the reading withholds it."""
    if cell.reading.value is None:
        return cell.estimate
    result = one.results["pair"]
    return (result.numbers if asked.slice is None else result.slices[asked.slice])[asked.number]


def _difference(
    first: Estimate, second: Estimate
) -> tuple[float, float | None, float | None, float | None] | None:
    """second - first with interval and p, or None where they cannot be paired."""
    drawn = first.replicates, second.replicates
    if first.value is None or second.value is None or drawn[0] is None or drawn[1] is None:
        return None
    if len(drawn[0]) != len(drawn[1]):
        return None
    value = second.value - first.value
    found = replicate_difference(value, drawn[0], drawn[1], clusters=min(first.texts, second.texts))
    if found is None:
        return value, None, None, None
    return value, found.low, found.high, found.p
