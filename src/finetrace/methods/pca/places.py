"""Which tokens count, and what of their states: the first token and the template's own are apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.data import ROLES
from finetrace.engine import Step

PLACES = ("first", "template", "rest")
FIRST, TEMPLATE, REST = range(3)
_TEMPLATE_ROLE = ROLES.index("template")
# The square of a state that float32 products can still hold; a larger one is left out, as one that is not finite is.
_LARGEST = 1e30


@dataclass(frozen=True)
class Seen:
    """Kept tokens of a step at one layer, row by row.

    change: tuned minus base; base: the base's state; both float32 [token, d_model], over the base's norm if normalised.
    square: float32 [token, 2], their squared norms. place: index in PLACES. text: the row of the step; half: of the texts.
    lost: int64 [batch], kept tokens of each row that are not finite (or, if normalised, have no norm) and not in here.
    """

    change: Float[Tensor, "token d_model"]
    base: Float[Tensor, "token d_model"]
    square: Float[Tensor, "token two"]
    place: Int[Tensor, " token"]
    text: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    half: Int[Tensor, " token"]
    lost: Int[Tensor, " batch"]

    def at(self, chosen: Bool[Tensor, " token"]) -> Seen:
        """Some of the tokens."""
        return Seen(
            self.change[chosen],
            self.base[chosen],
            self.square[chosen],
            self.place[chosen],
            self.text[chosen],
            self.position[chosen],
            self.half[chosen],
            self.lost,
        )


def look(step: Step, layer: int, normalise: bool) -> Seen:
    """The step's kept tokens at a layer. A text's half of the texts is a hash of its content."""
    first, other = step.hidden(layer)
    base = first[step.keep].float()
    change = other[step.keep].float() - base
    square = torch.stack([change.square().sum(-1), base.square().sum(-1)], -1)
    usable = (square < _LARGEST).all(-1)
    if normalise:
        usable &= square[:, 1] > 0
    text, position = step.keep.nonzero().T
    lost = torch.bincount(text[~usable], minlength=len(step.ids))
    halves = torch.tensor([int(key) % 2 for key in step.key], device=text.device)
    found = Seen(change, base, square, places(step)[step.keep], text, position, halves[text], lost)
    found = found if bool(usable.all()) else found.at(usable)
    return _normalised(found) if normalise else found


def _normalised(found: Seen) -> Seen:
    norm = found.square[:, 1:].sqrt()
    square = torch.cat([found.square[:, :1] / found.square[:, 1:], torch.ones_like(norm)], -1)
    return replace(found, change=found.change / norm, base=found.base / norm, square=square)


def places(step: Step) -> Int[Tensor, "batch pos"]:
    """The place of every token: position 0, where attention sinks into and norms are huge; what the template added; rest."""
    found = torch.full_like(step.position, REST)
    found[step.role == _TEMPLATE_ROLE] = TEMPLATE
    return found.masked_fill(step.position == 0, FIRST)


def by_half(found: Seen) -> Iterator[tuple[int, Seen]]:
    """The tokens that are in the components, one half of the texts at a time."""
    for half in (0, 1):
        yield half, found.at((found.place == REST) & (found.half == half))
