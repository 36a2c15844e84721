"""Where a text is looked at: its own first positions, or those around a conversation's first answer token.

Every kept position of a row is in one place, and in the average that the place belongs to:

    a text           first (position 0), text 1, ..., text P-1, rest           start = text 1-4
    a conversation   answer -k, ..., answer -1, answer 0, ..., answer P-1, rest   start = answer 0-3

Answer 0 is the first token whose role is `assistant`; what is said there is predicted at answer -1. The first token of a
row (BOS, or whatever attention sinks into) is in no average; a conversation's is nowhere. A row without an assistant's
token counts as a text. What is summed of a row is one vector a place: the mean over its positions there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.data import ROLES
from finetrace.engine import Step
from finetrace.methods.activation_difference_lens import Config

FIRST, START, REST = "first", "start", "rest"
TEXT, CHAT = "text", "answer"
KINDS = (TEXT, CHAT)
_ASSISTANT = ROLES.index("assistant")
# Numbers in a block of rows: its float64 copy stays near a CPU's cache.
_BLOCK = 2**18


def single(config: Config, kind: str) -> range:
    """Positions that are looked at one by one, counted from the row's start or from the first answer token."""
    return range(0 if kind == TEXT else -config.before, config.positions)


def places(config: Config, kind: str) -> tuple[str, ...]:
    """Names of a kind's places, in the order of its sums."""
    names = [f"{kind} {p}" for p in single(config, kind)]
    if kind == TEXT:
        names[0] = FIRST
    return (*names, START, REST)


def averaged(kind: str) -> range:
    """The positions that `start` averages."""
    return range(1, 5) if kind == TEXT else range(4)


def named(config: Config, name: str) -> tuple[tuple[str, int], ...]:
    """(kind, index) of the sums that make up a place: a place's name, or a bare position, of both kinds."""
    found = []
    for kind in KINDS:
        known = places(config, kind)
        for wanted in (name, f"{kind} {name}", FIRST if name == "0" and kind == TEXT else name):
            if wanted in known:
                found.append((kind, known.index(wanted)))
                break
    return tuple(found)


@dataclass(frozen=True)
class Picked:
    """The rows of one kind in a step, and where their places are.

    rows: in the step. at [row, single]: positions, valid where `there`. start, rest [row, 1, single or position]: weights
    of the means, those of `rest` over all positions. count [row, place]: positions in each place.
    """

    rows: Int[Tensor, " row"]
    at: Int[Tensor, "row single"]
    there: Bool[Tensor, "row single"]
    start: Float[Tensor, "row one single"]
    rest: Float[Tensor, "row one pos"]
    count: Int[Tensor, "row place"]

    def means(self, states: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row place d_model"]:
        """Each row's mean at each place, float64; 0 where it has no such position."""
        wide = self.at[:, :, None].expand(-1, -1, states.shape[-1])
        singles = states.gather(1, wide).double() * self.there[:, :, None]
        size = max(1, _BLOCK // (states.shape[1] * states.shape[2]))
        parts = zip(self.rest.split(size), states.split(size), strict=True)
        rest = torch.cat([torch.bmm(weight, part.double()) for weight, part in parts])
        return torch.cat([singles, torch.bmm(self.start, singles), rest], 1)


def pick(config: Config, step: Step, kind: str, finite: Bool[Tensor, "batch pos"]) -> Picked | None:
    """The step's rows of one kind; None if it has none. Positions that are not `finite` are in no place."""
    answers = (step.role == _ASSISTANT) & (step.position > 0)
    is_chat = answers.any(1)
    rows = (is_chat if kind == CHAT else ~is_chat).nonzero()[:, 0]
    if not len(rows):
        return None
    anchor = answers[rows].int().argmax(1) if kind == CHAT else torch.zeros_like(rows)
    offsets = torch.tensor(list(single(config, kind)), device=rows.device)
    at = anchor[:, None] + offsets
    keep, position = (step.keep & finite)[rows], step.position[rows]
    inside = (at >= (1 if kind == CHAT else 0)) & (at < keep.shape[1])
    at = at.clamp(0, keep.shape[1] - 1)
    there = inside & keep.gather(1, at)
    start = there & torch.isin(offsets, torch.tensor(list(averaged(kind)), device=rows.device))
    offset = position - anchor[:, None]
    rest = keep & (position > 0) & ((offset < offsets[0]) | (offset > offsets[-1]))
    count = torch.cat([there.long(), start.sum(1, keepdim=True), rest.sum(1, keepdim=True)], 1)
    return Picked(rows, at, there, _weights(start), _weights(rest), count)


def _weights(chosen: Bool[Tensor, "row any"]) -> Float[Tensor, "row one any"]:
    """Of a mean over the chosen: float64, 0 where there are none."""
    return (chosen / chosen.sum(1, keepdim=True).clamp(min=1).double())[:, None]
