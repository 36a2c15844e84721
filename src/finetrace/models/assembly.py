"""From a plan to models in memory: the base, full sides that share what is identical with it, adapters on top."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import ModelError, unknown
from finetrace.models import adapters, head, identity, keep, loading, tokens, vocabulary, words
from finetrace.models.architecture import Anatomy, anatomy
from finetrace.models.placement import Place, refuse_offloaded
from finetrace.models.source import Source

BASE = "base"
TUNED = "tuned"
# What of a plan does not reach the base's weights; base itself is told by its folder and content.
_NOT_THE_BASE = ("base", "others", "tokenizer", "chat_template", "tuned")


@dataclass(frozen=True)
class Plan:
    """What a pair is loaded from. others: side -> checkpoint, None where the side is the base itself. device: where the base
    takes its ids, and where what sides give is held against each other. spread: the base lies over all GPUs, `device`
    first. tuned: where full checkpoints beside the base are, None as the base."""

    base: Source
    others: Mapping[str, Source | None]
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None = None
    tokenizer: str | Path | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    spread: bool = False
    tuned: Place | None = None

    @property
    def sides(self) -> tuple[str, ...]:
        return (BASE, *self.others)

    def check(self, side: str) -> None:
        if side != BASE and side not in self.others:
            raise unknown("side", side, self.sides)

    def source(self, side: str) -> Source:
        """Where the side comes from; the base's where the side is the base itself."""
        self.check(side)
        return (None if side == BASE else self.others[side]) or self.base

    def kind(self, side: str) -> str:
        """ "base" (also a side that is the base itself), "adapter" or "full"."""
        self.check(side)
        found = None if side == BASE else self.others[side]
        return BASE if found is None else found.kind

    def place(self, side: str) -> Place:
        """Where the side's model is."""
        base = Place(self.device, self.spread)
        return base if self.body(side) == BASE else self.tuned or base

    def body(self, side: str) -> str:
        """The side whose model runs for this one: its own if it is a full checkpoint, else the base's."""
        return side if self.kind(side) == "full" else BASE


@dataclass
class Loaded:
    """What is in memory.

    parts: body -> model; names: adapter side -> its name in PEFT; shared: base ids of the shared vocabulary, None for
    all; bytes_shared: full side -> bytes held once with the base. heads, same, vocabulary: made on demand. lease: what the
    base is held by.
    """

    lease: keep.Lease
    parts: dict[str, Anatomy]
    peft: Any | None
    names: dict[str, str]
    fits: dict[str, adapters.Fit]
    tokenizers: dict[str, Any]
    alignments: dict[str, vocabulary.Alignment]
    shared: Tensor | None
    bytes_shared: dict[str, int]
    heads: dict[str, head.Head] = field(default_factory=dict)
    same: dict[str, bool] = field(default_factory=dict)
    vocabulary: words.Vocabulary | None = None


def assemble(plan: Plan) -> Loaded:
    """Loads every side of the plan; a ModelError for the first thing that does not fit."""
    identity.refuse_not_finite(plan.base, *(source for source in plan.others.values() if source is not None))
    tokenizers = tokens.load_tokenizers(
        plan.base, plan.others, plan.tokenizer, plan.chat_template, plan.trust_remote_code
    )
    lease = keep.lease(lambda: _base_key(plan), lambda: _load(plan, BASE))
    parts = {BASE: lease.parts}
    shared_bytes: dict[str, int] = {}
    for side in plan.sides[1:]:
        if plan.body(side) != side:
            continue
        parts[side] = _load(plan, side)
        _refuse_other_shape(parts[BASE], parts[side], plan.source(side).name)
        shared_bytes[side] = loading.share_identical(parts[side].model, parts[BASE].model)
    alignments = _align_all(plan, parts, tokenizers)
    peft, names, fits = _attach_all(plan, parts[BASE])
    shared = vocabulary.shared_rows(alignments, head_rows(parts[BASE]))
    return Loaded(lease, parts, peft, names, fits, tokenizers, alignments, shared, shared_bytes)


def _load(plan: Plan, side: str) -> Anatomy:
    where = plan.place(side)
    model = loading.load_model(
        plan.source(side),
        dtype=plan.dtype,
        device=where.device,
        attn_implementation=plan.attn_implementation,
        trust_remote_code=plan.trust_remote_code,
        spread=where.spread,
    )
    refuse_offloaded(model, plan.source(side).name)
    return anatomy(model)


def _base_key(plan: Plan) -> Hashable:
    """All of the plan that makes the base in memory what it is."""
    own = {one.name: repr(getattr(plan, one.name)) for one in fields(plan) if one.name not in _NOT_THE_BASE}
    return (str(plan.base.folder), identity.identity(plan.base), *sorted(own.items()))


def read_head(held: Loaded, plan: Plan, side: str, config: Any) -> head.Head:
    """The side's head over the shared vocabulary, on the pair's device; its adapter, if it has one, must be the active one."""
    module = head.output_module(held.parts[plan.body(side)].model)
    name = held.names.get(side)
    if name is not None and head.changed_by(module, name):
        weight, bias = head.adapted_tensors(module, name)
    else:
        weight, bias = head.plain_tensors(head.bare(module))
    weight, bias = head.take_rows(
        weight.detach(), None if bias is None else bias.detach(), side_rows(held, side)
    )
    bias = None if bias is None else bias.to(plan.device)
    return head.Head(weight.to(plan.device), bias, *head.scale_and_cap(config))


def side_rows(held: Loaded, side: str) -> Tensor | None:
    """The side's own ids of the shared vocabulary, in base order; None where they are 0, 1, 2, ... to the end."""
    alignment = held.alignments.get(side)
    to_side = None if alignment is None else alignment.to_side
    if to_side is None:
        return held.shared
    return to_side if held.shared is None else to_side[held.shared]


def head_rows(parts: Anatomy) -> int:
    """Rows of the head, padding included."""
    return head.plain_tensors(head.bare(head.output_module(parts.model)))[0].shape[0]


def _attach_all(plan: Plan, base: Anatomy) -> tuple[Any | None, dict[str, str], dict[str, adapters.Fit]]:
    peft: Any | None = None
    names: dict[str, str] = {}
    fits: dict[str, adapters.Fit] = {}
    for number, side in enumerate(plan.sides):
        if plan.kind(side) != "adapter":
            continue
        # All of one length and no part of PEFT's own key prefixes: PEFT finds an adapter's keys by substring.
        names[side] = f"side{number:04d}"
        peft, fits[side] = adapters.attach(base.model, peft, plan.source(side), names[side])
    if peft is not None:
        adapters.switch(peft, None)
    return peft, names, fits


def _align_all(
    plan: Plan, parts: Mapping[str, Anatomy], tokenizers: Mapping[str, Any]
) -> dict[str, vocabulary.Alignment]:
    found: dict[str, vocabulary.Alignment] = {}
    base, rows = tokenizers[BASE], head_rows(parts[BASE])
    for side in plan.sides[1:]:
        theirs, name, body = tokenizers[side], plan.source(side).name, plan.body(side)
        found[side] = vocabulary.align(
            base.get_vocab(),
            theirs.get_vocab(),
            rows,
            head_rows(parts[body]),
            one_head=body == BASE,
            name=name,
        )
        if theirs is not base:
            vocabulary.refuse_other_splits(base, theirs, name)
    return found


def _refuse_other_shape(base: Anatomy, side: Anatomy, name: str) -> None:
    ours, theirs = (parts.model.config.get_text_config(decoder=True) for parts in (base, side))
    for key in ("hidden_size", "num_hidden_layers"):
        one, other = getattr(ours, key), getattr(theirs, key)
        if one != other:
            raise ModelError(
                f"{name} is of another shape than the base: its {key} is {other}, the base's {one}."
            )
