"""Pair: a base and a tuned model (and harmless nulls), read as one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from finetrace.core.errors import BadInput, ModelError, unknown
from finetrace.models import adapters, head, identity, loading, tokens, vocabulary
from finetrace.models.architecture import Anatomy, Hidden, anatomy, run_trunk
from finetrace.models.files import float32_bytes, validate
from finetrace.models.source import Source, resolve

BASE = "base"
TUNED = "tuned"


@dataclass(frozen=True)
class Plan:
    """What a pair is to be loaded from. sides: name -> checkpoint, None where the side is the base itself."""

    base: Source
    sides: Mapping[str, Source | None]
    dtype: torch.dtype
    device: torch.device
    attn_implementation: str | None
    tokenizer: str | Path | None
    chat_template: str | None
    trust_remote_code: bool


@dataclass
class _Loaded:
    """What is in memory."""

    parts: dict[str, Anatomy]
    peft: Any | None
    names: dict[str, str]
    fits: dict[str, adapters.Fit]
    tokenizers: dict[str, Any]
    alignments: dict[str, vocabulary.Alignment]
    shared: Tensor | None
    bytes_shared: dict[str, int]
    heads: dict[str, head.Head] = field(default_factory=dict)


@final
class Side:
    """One side of a pair: callable and able to generate like a transformers model, in its own adapter state."""

    def __init__(self, pair: Pair, name: str) -> None:
        self._pair = pair
        self.name = name

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The transformers model of this side, with its adapter switched on (or all off, on the base) inside."""
        with self._pair.open(self.name) as model:
            yield model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.open() as model, torch.inference_mode():
            return model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.open() as model, torch.inference_mode():
            return model.generate(*args, **kwargs)


@final
class Pair:
    """A base and a tuned model, loaded on first use; made by `open_pair`.

    At rest every adapter is off: the shared model is the base, bit-exactly.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._held: _Loaded | None = None
        self._active: str | None = None
        self._configs: dict[str, Any] = {}

    # -- what it is, without loading weights ---------------------------------------------------------------------------
    @property
    def sides(self) -> tuple[str, ...]:
        """("base", "tuned", *nulls)."""
        return (BASE, *self.plan.sides)

    def source(self, side: str) -> Source:
        """Where the side comes from; the base's where the side is the base itself."""
        self._check(side)
        return self.plan.base if side == BASE else self.plan.sides[side] or self.plan.base

    def kind(self, side: str) -> str:
        """ "base" (also a side that is the base itself), "adapter" or "full"."""
        self._check(side)
        found = None if side == BASE else self.plan.sides[side]
        return BASE if found is None else found.kind

    @property
    def dtype(self) -> torch.dtype:
        return self.plan.dtype

    @property
    def device(self) -> torch.device:
        return self.plan.device

    @property
    def n_layers(self) -> int:
        return int(self.config(BASE).num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config(BASE).hidden_size)

    @property
    def max_positions(self) -> int | None:
        """The longest text that the base has positions for, or None if it does not say."""
        longest = getattr(self.config(BASE), "max_position_embeddings", None)
        return None if longest is None else int(longest)

    def config(self, side: str) -> Any:
        """The text part of a side's transformers config."""
        source = self.plan.base if self.kind(side) != "full" else self.source(side)
        if source.name not in self._configs:
            self._configs[source.name] = tokens.read_config(source, self.plan.trust_remote_code)
        return self._configs[source.name]

    def adapter_config(self, side: str) -> dict[str, Any] | None:
        """The adapter_config.json of an adapter side, else None."""
        return adapters.read_adapter_config(self.source(side)) if self.kind(side) == "adapter" else None

    def identity(self, side: str) -> str:
        """SHA-256 of the side's content, however its files are cut and wherever they lie."""
        return identity.identity(self.source(side))

    def tokenizer_identity(self) -> str:
        """SHA-256 of the tokenizer and its chat template."""
        return tokens.tokenizer_identity(self.tokenizer)

    # -- what is in memory ---------------------------------------------------------------------------------------------
    @property
    def base(self) -> Side:
        return Side(self, BASE)

    @property
    def tuned(self) -> Side:
        return Side(self, TUNED)

    def side(self, name: str) -> Side:
        self._check(name)
        return Side(self, name)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of both sides: the base's, with a chat template if either side has one."""
        return self._loaded.tokenizers[BASE]

    def side_tokenizer(self, side: str) -> Any:
        """The side's own tokenizer; the base's where it brings none."""
        self._check(side)
        return self._loaded.tokenizers[side]

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary that all sides share."""
        shared = self._loaded.shared
        return self._rows(BASE) if shared is None else len(shared)

    @property
    def shared_ids(self) -> Int[Tensor, "vocab"] | None:
        """Base token ids of the shared vocabulary in order; None where it is all of the base's."""
        return self._loaded.shared

    def alignment(self, side: str) -> vocabulary.Alignment | None:
        """How the side's vocabulary meets the base's; None on the base itself."""
        self._check(side)
        return self._loaded.alignments.get(side)

    def shared_index(self, ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Row of the shared vocabulary of every base token id; -1 where a token is not shared."""
        if self._loaded.shared is None:
            return ids
        table = torch.full((self._rows(BASE),), -1, dtype=torch.long)
        table[self._loaded.shared] = torch.arange(len(self._loaded.shared))
        return table.to(ids.device)[ids]

    def fit(self, side: str) -> adapters.Fit | None:
        """How an adapter's keys met the model; None on other sides."""
        self._check(side)
        return self._loaded.fits.get(side)

    def bytes_shared(self, side: str) -> int:
        """Bytes of a full checkpoint that are bit-identical with the base's and so held once."""
        self._check(side)
        return self._loaded.bytes_shared.get(side, 0)

    def memory(self) -> dict[str, Any]:
        """Bytes of parameters and buffers held: total, those that each side adds to the base's, those shared."""
        held = self._loaded
        models = {name: part.model for name, part in held.parts.items()}
        base = loading.unique_bytes(models[BASE])
        own = {
            name: loading.unique_bytes(models[BASE], m) - base for name, m in models.items() if name != BASE
        }
        return {
            "total": loading.unique_bytes(*models.values()),
            "base": base,
            "sides": own,
            "shared": held.bytes_shared,
        }

    def load(self) -> Pair:
        """Loads now what would be loaded on first use, so that every error of it comes now."""
        _ = self._loaded
        return self

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        self._held = None
        self._active = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- running it ----------------------------------------------------------------------------------------------------
    @contextmanager
    def open(self, side: str) -> Iterator[Any]:
        """The side's transformers model in its adapter state; the state before comes back, whatever happens inside."""
        self._check(side)
        held, before = self._loaded, self._active
        wanted = held.names.get(side)
        try:
            if wanted != before:
                self._switch(wanted)
            yield held.parts[self._body(side)].model
        finally:
            if self._active != before:
                self._switch(before)

    def trunk(
        self,
        side: str,
        ids: Int[Tensor, "batch pos"],
        attention: Int[Tensor, "batch pos"],
        layers: tuple[int, ...] = (),
        final: bool = True,
    ) -> Hidden:
        """Hidden states of a right-padded batch of base token ids; no logits are computed.

        Equal, bit for bit, to the hidden states of the side's plain transformers model on the same batch.
        """
        held = self._loaded
        with self.open(side):
            ids = self._translated(side, ids.to(self.device))
            return run_trunk(held.parts[self._body(side)], ids, attention.to(self.device), layers, final)

    def head(self, side: str) -> head.Head:
        """The side's head over the shared vocabulary, in base-token order."""
        self._check(side)
        held = self._loaded
        if side not in held.heads:
            held.heads[side] = self._read_head(side)
        return held.heads[side]

    def same_head(self, side: str) -> bool:
        """Whether the side's head is the base's own: same values, scale and cap."""
        ours, theirs = self.head(BASE), self.head(side)
        if (ours.scale, ours.softcap) != (theirs.scale, theirs.softcap):
            return False
        return _equal(ours.weight, theirs.weight) and _equal(ours.bias, theirs.bias)

    @contextmanager
    def scale_adapter(self, side: str, factor: float) -> Iterator[None]:
        """Multiplies a LoRA side's delta by `factor` inside (for dose matching)."""
        self._check(side)
        if self.kind(side) != "adapter":
            raise ModelError(
                f"'{side}' is not an adapter: only the change that a LoRA adapter makes can be scaled."
            )
        held, name = self._loaded, self._loaded.names[side]
        if (self.adapter_config(side) or {}).get("use_dora"):
            raise ModelError(f"'{side}' is a DoRA adapter, whose change is not proportional to its scaling.")
        if adapters.saved_modules(held.peft, name):
            raise ModelError(f"'{side}' replaces whole modules (modules_to_save), which cannot be scaled.")
        with adapters.scaled(held.peft, name, factor):
            stale = held.heads.pop(side, None)
            try:
                yield
            finally:
                held.heads.pop(side, None)
                if stale is not None:
                    held.heads[side] = stale

    # -- inside --------------------------------------------------------------------------------------------------------
    @property
    def _loaded(self) -> _Loaded:
        if self._held is None:
            self._held = _load(self)
        return self._held

    def _check(self, side: str) -> None:
        if side != BASE and side not in self.plan.sides:
            raise unknown("side", side, self.sides)

    def _body(self, side: str) -> str:
        """The side whose model runs for this one: its own if it is a full checkpoint, else the base's."""
        return side if self.kind(side) == "full" else BASE

    def _switch(self, name: str | None) -> None:
        adapters.switch(self._loaded.peft, name)
        self._active = name

    def _rows(self, side: str) -> int:
        return _head_rows(self._loaded.parts[self._body(side)])

    def _translated(self, side: str, ids: Tensor) -> Tensor:
        alignment = self._loaded.alignments.get(side)
        if alignment is None or alignment.to_side is None:
            return ids
        there = alignment.to_side.to(ids.device)[ids]
        if bool((there < 0).any()):
            token = self.tokenizer.convert_ids_to_tokens(int(ids[there < 0][0]))
            raise ModelError(
                f"The text holds the token {token!r}, which only the base has and '{side}' lacks."
            )
        return there

    def _read_head(self, side: str) -> head.Head:
        held = self._loaded
        body = held.parts[self._body(side)]
        module = head.output_module(body.model)
        scale, cap = head.scale_and_cap(self.config(side))
        name = held.names.get(side)
        if name is not None and head.changed_by(module, name):
            with self.open(side):
                weight, bias = head.adapted_tensors(module, name)
        else:
            weight, bias = head.plain_tensors(head.bare(module))
        alignment, rows = held.alignments.get(side), held.shared
        if rows is not None and alignment is not None and alignment.to_side is not None:
            rows = alignment.to_side[rows]
        weight, bias = head.take_rows(weight.detach(), None if bias is None else bias.detach(), rows)
        return head.Head(weight, bias, scale, cap)


def open_pair(
    base: str | Path,
    tuned: str | Path | None,
    *,
    nulls: Mapping[str, str | Path] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    revision: str | None = None,
    tuned_revision: str | None = None,
    attn_implementation: str | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Pair:
    """Opens a pair: checks every file's form now, loads weights on first use.

    base, tuned, nulls: local folders or hub ids (`org/repo`, `org/repo/subfolder`); tuned is an adapter, a full
    checkpoint, or None for the base against itself. chat_template: a template, or a file that holds one.
    """
    if quantization is not None:
        raise ModelError(
            f"Quantised loading ('{quantization}') is not supported yet: leave quantization out."
        )
    first = resolve(base, revision=revision)
    if first.kind != "full":
        raise ModelError(
            f"The base {first.name} is an adapter: give the model it was trained on as the base."
        )
    sides: dict[str, Source | None] = {
        TUNED: None if tuned is None else resolve(tuned, revision=tuned_revision)
    }
    for name, given in (nulls or {}).items():
        if name in (BASE, TUNED):
            raise BadInput(f"A null cannot be called '{name}'.")
        sides[name] = resolve(given)
    sources = [first, *(s for s in sides.values() if s is not None)]
    for source in sources:
        validate(source)
        if source.kind == "adapter":
            adapters.read_adapter_config(source)
    where = loading.pick_device(device)
    full = [source for source in sources if source.kind == "full"]
    size = sum(float32_bytes(source) for source in full)
    own = tokens.own_dtype(first)
    template = tokens.read_template(chat_template)
    chosen = loading.pick_dtype(dtype, where, size, own)
    return Pair(
        Plan(first, sides, chosen, where, attn_implementation, tokenizer, template, trust_remote_code)
    )


def _load(pair: Pair) -> _Loaded:
    """Loads the base, then every full side (sharing what is identical), then all adapters onto the base."""
    plan = pair.plan
    identity.refuse_not_finite(plan.base, *(s for s in plan.sides.values() if s is not None))
    tokenizers = tokens.load_tokenizers(
        plan.base, plan.sides, plan.tokenizer, plan.chat_template, plan.trust_remote_code
    )
    parts: dict[str, Anatomy] = {}
    shared_bytes: dict[str, int] = {}
    for side in pair.sides:
        if side == BASE or pair.kind(side) == "full":
            model = loading.load_model(
                pair.source(side),
                dtype=plan.dtype,
                device=plan.device,
                attn_implementation=plan.attn_implementation,
                trust_remote_code=plan.trust_remote_code,
            )
            parts[side] = anatomy(model)
            _refuse_other_shape(parts[BASE], parts[side], pair.source(side).name)
            if side != BASE:
                shared_bytes[side] = loading.share_identical(model, parts[BASE].model)
    peft, names, fits = _attach_all(pair, parts[BASE])
    alignments = _align_all(pair, parts, tokenizers)
    shared = vocabulary.shared_rows(alignments, _head_rows(parts[BASE]))
    return _Loaded(parts, peft, names, fits, tokenizers, alignments, shared, shared_bytes)


def _attach_all(pair: Pair, base: Anatomy) -> tuple[Any | None, dict[str, str], dict[str, adapters.Fit]]:
    peft: Any | None = None
    names: dict[str, str] = {}
    fits: dict[str, adapters.Fit] = {}
    for number, side in enumerate(pair.sides):
        if pair.kind(side) != "adapter":
            continue
        # Of one length, and no part of PEFT's own key prefixes: PEFT finds an adapter's keys by substring.
        names[side] = f"side{number:04d}"
        peft, fits[side] = adapters.attach(base.model, peft, pair.source(side), names[side])
    if peft is not None:
        adapters.switch(peft, None)
    return peft, names, fits


def _align_all(
    pair: Pair, parts: Mapping[str, Anatomy], tokenizers: Mapping[str, Any]
) -> dict[str, vocabulary.Alignment]:
    found: dict[str, vocabulary.Alignment] = {}
    base, base_rows = tokenizers[BASE], _head_rows(parts[BASE])
    for side in pair.sides[1:]:
        body = parts[side] if side in parts else parts[BASE]
        theirs, name = tokenizers[side], pair.source(side).name
        if theirs is not base:
            vocabulary.refuse_other_splits(base, theirs, name)
        one_head = side not in parts
        found[side] = vocabulary.align(
            base.get_vocab(), theirs.get_vocab(), base_rows, _head_rows(body), one_head=one_head, name=name
        )
    return found


def _head_rows(parts: Anatomy) -> int:
    return head.plain_tensors(head.bare(head.output_module(parts.model)))[0].shape[0]


def _refuse_other_shape(base: Anatomy, side: Anatomy, name: str) -> None:
    ours, theirs = (p.model.config.get_text_config(decoder=True) for p in (base, side))
    for key in ("hidden_size", "num_hidden_layers"):
        one, other = getattr(ours, key), getattr(theirs, key)
        if one != other:
            raise ModelError(
                f"{name} is of another shape than the base: its {key} is {other}, the base's {one}."
            )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one is other or (one.data_ptr() == other.data_ptr() and one.shape == other.shape):
        return True
    return one.dtype == other.dtype and torch.equal(one, other)


def check_head(pair: Pair, *, tokens_probed: int = 8, seed: int = 0) -> None:
    """A ModelError unless head(final hidden) gives the model's own logits, on every side, on a few random tokens.

    Largest difference over largest logit: 1e-3 in float32, 5e-2 in half precision (the model's own rounding).
    """
    ids = _probe_ids(pair, tokens_probed, seed)
    limit = 1e-3 if pair.dtype == torch.float32 else 5e-2
    for side in pair.sides:
        own = _model_logits(pair, side, ids)
        hidden = pair.trunk(side, ids, torch.ones_like(ids)).final
        if hidden is None:
            raise ModelError(f"The final hidden states of '{side}' could not be read.")
        ours = pair.head(side).logits(hidden.reshape(-1, hidden.shape[-1])).float()
        off = float((ours - own).abs().max()) / max(float(own.abs().max()), 1e-30)
        if not off <= limit:
            raise ModelError(
                f"The head of this architecture is not understood on side '{side}': logits recomputed from the final "
                f"hidden states differ from the model's own by {off:.1e} of the largest, more than {limit:.0e}."
            )


def _probe_ids(pair: Pair, count: int, seed: int) -> Int[Tensor, "batch pos"]:
    picks = torch.randint(pair.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))
    shared = pair.shared_ids
    return (picks if shared is None else shared[picks]).to(pair.device)


def _model_logits(pair: Pair, side: str, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "row vocab"]:
    """The plain model's logits over the shared vocabulary, float32."""
    alignment, rows = pair.alignment(side), pair.shared_ids
    if alignment is not None and alignment.to_side is not None:
        ids = alignment.to_side.to(ids.device)[ids]
        rows = None if rows is None else alignment.to_side[rows]
    with pair.open(side) as model, torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1]).float()
    return logits if rows is None else logits[:, rows.to(logits.device)]


def parameters(module: nn.Module) -> int:
    """Distinct parameters."""
    return sum(p.numel() for p in module.parameters())
