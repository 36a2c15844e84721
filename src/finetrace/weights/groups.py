"""Groups of weights, chosen by their scores: single entries of matrices, or whole output rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.core.errors import BadInput

Unit = Literal["entries", "rows"]
Per = Literal["matrix", "row"]
Shapes = Mapping[str, tuple[int, int]]
"""Module -> [out, in] of its matrix."""

# Rows of scores ranked at once where each row has a cut of its own.
_RANKED = 1 << 22


@dataclass(frozen=True, eq=False)
class Group:
    """places: module -> int64, ascending, each once. unit "entries": flat ids, row * in + column of a matrix [out, in];
    "rows": output rows, each with all of its entries. A module that is not there has none."""

    name: str
    unit: Unit
    places: Mapping[str, Int[Tensor, "n"]]

    def rows_columns(
        self, module: str, shape: tuple[int, int]
    ) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"] | None]:
        """Rows and columns of a module's places; columns are None where the unit is whole rows."""
        ids = self.of(module)
        return (ids, None) if self.unit == "rows" else (ids // shape[1], ids % shape[1])

    def of(self, module: str) -> Int[Tensor, "n"]:
        """A module's places; none where it has none."""
        return self.places.get(module, torch.empty(0, dtype=torch.int64))

    def counts(self) -> dict[str, int]:
        """Module -> number of places: of entries, or of rows."""
        return {module: len(ids) for module, ids in self.places.items()}

    def weights(self, shapes: Shapes) -> dict[str, int]:
        """Module -> number of weights, whatever the unit."""
        width = {module: shapes[module][1] if self.unit == "rows" else 1 for module in self.places}
        return {module: n * width[module] for module, n in self.counts().items()}

    def mask(self, module: str, shape: tuple[int, int]) -> Bool[Tensor, "out in"]:
        """True on the group's weights of a module."""
        found = torch.zeros(shape, dtype=torch.bool)
        if self.unit == "rows":
            found[self.of(module)] = True
        else:
            found.view(-1)[self.of(module)] = True
        return found

    def __len__(self) -> int:
        return sum(len(ids) for ids in self.places.values())


def top(
    scores: Mapping[str, Float[Tensor, "out in"]],
    fraction: float,
    *,
    name: str,
    per: Per = "matrix",
    unit: Unit = "entries",
) -> Group:
    """The highest `fraction` by score of each matrix, or (per="row") of each of its output rows; at least one.

    Of equal scores at the cut, those of the lowest ids. A score of 0 is never at the top: such a weight did nothing, as
    those of an expert that no token reached. unit="rows": whole rows, a row's score being the sum of its entries'.
    """
    _require(fraction, per, unit)
    found = {module: _ids(_top(score, fraction, per, unit)) for module, score in scores.items()}
    return Group(name, unit, found)


def difference(
    safety: Mapping[str, Float[Tensor, "out in"]],
    utility: Mapping[str, Float[Tensor, "out in"]],
    p: float,
    q: float,
    *,
    name: str,
    per: Per = "matrix",
    unit: Unit = "entries",
) -> Group:
    """The top q by safety that are not among the top p by utility (Wei et al. 2024), each as in `top`."""
    if set(safety) != set(utility):
        apart = sorted(set(safety) ^ set(utility))
        raise BadInput(f"Only one of the two has scores of {apart[0]}: both need the same matrices.")
    _require(p, per, unit)
    _require(q, per, unit)
    found = {}
    for module, score in safety.items():
        mine, theirs = _top(score, q, per, unit), _top(utility[module], p, per, unit)
        found[module] = _ids(mine & ~theirs)
    return Group(name, unit, found)


def joined(parts: Iterable[Group]) -> Group:
    """Parts of one group, each of other matrices, as one: what scoring in parts gives."""
    parts = tuple(parts)
    if not parts or len({(part.name, part.unit) for part in parts}) > 1:
        raise BadInput("Only parts of one group can be joined, and at least one.")
    places: dict[str, Tensor] = {}
    for part in parts:
        if twice := sorted(places.keys() & part.places.keys()):
            raise BadInput(f"Two parts of {part.name} have the matrix {twice[0]}.")
        places |= part.places
    return Group(parts[0].name, parts[0].unit, places)


def jaccard(a: Group, b: Group) -> float | None:
    """Places in both over places in either, over all matrices together; None where neither has any."""
    if a.unit != b.unit:
        raise BadInput(f"{a.name} is of {a.unit} and {b.name} of {b.unit}: their overlap means nothing.")
    both = sum(int(torch.isin(a.of(m), b.of(m), assume_unique=True).sum()) for m in a.places)
    either = len(a) + len(b) - both
    return both / either if either else None


def chance_jaccard(fraction: float) -> float:
    """The Jaccard index that two independent random groups of this fraction have on average: k / (2 - k)."""
    if not 0 < fraction < 1:
        raise BadInput(_no_fraction(fraction))
    return fraction / (2 - fraction)


def _require(fraction: float, per: str, unit: str) -> None:
    if not 0 < fraction < 1:
        raise BadInput(_no_fraction(fraction))
    for what, value, known in (("per", per, get_args(Per)), ("unit", unit, get_args(Unit))):
        if value not in known:
            raise BadInput(f"A group has no {what} '{value}'; it is {' or '.join(known)}.")
    if unit == "rows" and per == "row":
        raise BadInput("A group of whole rows is chosen per matrix: per='row' would choose within one row.")


def _no_fraction(fraction: float) -> str:
    return f"A group's fraction is between 0 and 1, both excluded, such as 0.01; it is {fraction}."


def _ids(mask: Bool[Tensor, "n"]) -> Int[Tensor, "n"]:
    return mask.nonzero()[:, 0].cpu()


def _top(score: Float[Tensor, "out in"], fraction: float, per: Per, unit: Unit) -> Bool[Tensor, "n"]:
    """True at the chosen places, flat: of all entries, or of all rows."""
    if not bool(torch.isfinite(score).all()):
        raise BadInput("Some scores are not finite, so that nothing can be ranked by them.")
    if unit == "rows":
        score = score.sum(1, dtype=torch.float64)
    if per == "matrix":
        return _highest(score.reshape(1, -1), fraction)[0]
    step = max(1, _RANKED // max(1, score.shape[1]))
    return torch.cat([_highest(part, fraction) for part in score.split(step)]).flatten()


def _highest(score: Float[Tensor, "row n"], fraction: float) -> Bool[Tensor, "row n"]:
    """The highest of each row; of equal ones at the cut, those that come first."""
    n = score.shape[1]
    k = min(max(1, int(fraction * n + 0.5)), n)
    cut = score.kthvalue(n - k + 1, dim=1, keepdim=True).values
    above, level = score > cut, score == cut
    left = k - above.sum(1, keepdim=True)
    if bool((level.sum(1, keepdim=True) > left).any()):
        level &= level.cumsum(1) <= left
    return (above | level) & (score > 0)
