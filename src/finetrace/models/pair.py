"""Pair: a base and a tuned model (and harmless nulls), read as one object."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.core.decoding import Decoding
from finetrace.core.errors import ModelError
from finetrace.models import adapters, generate, identity, loading, tokens, words
from finetrace.models.architecture import Hidden, run_trunk
from finetrace.models.assembly import BASE, TUNED, Loaded, Plan, assemble, head_rows, read_head, side_rows
from finetrace.models.head import Head
from finetrace.models.placement import Place
from finetrace.models.source import Source
from finetrace.models.vocabulary import Alignment


@final
class Side:
    """One side of a pair: callable and able to generate like a transformers model, in its own adapter state."""

    def __init__(self, pair: Pair, name: str) -> None:
        self._pair = pair
        self.name = name

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The transformers model of this side, with its adapter switched on (on the base: all off) inside."""
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
        self._held: Loaded | None = None
        self._active: str | None = None
        self._configs: dict[str, Any] = {}

    # What it is, without loading weights.

    @property
    def sides(self) -> tuple[str, ...]:
        """("base", "tuned", *nulls)."""
        return self.plan.sides

    def source(self, side: str) -> Source:
        """Where the side comes from; the base's where the side is the base itself."""
        return self.plan.source(side)

    def kind(self, side: str) -> str:
        """ "base" (also a side that is the base itself), "adapter" or "full"."""
        return self.plan.kind(side)

    @property
    def dtype(self) -> torch.dtype:
        return self.plan.dtype

    @property
    def device(self) -> torch.device:
        return self.plan.device

    def place(self, side: str) -> Place:
        """Where the side's model is; what it gives comes to `device`, the base's."""
        return self.plan.place(side)

    @property
    def device_type(self) -> str:
        """The kind of device that the numbers come from; of each side where they differ ("cpu+cuda")."""
        return "+".join(dict.fromkeys(self.place(side).device.type for side in self.sides))

    @property
    def n_layers(self) -> int:
        return int(self.config(BASE).num_hidden_layers)

    @property
    def d_model(self) -> int:
        return int(self.config(BASE).hidden_size)

    @property
    def max_positions(self) -> int | None:
        """The longest text that every side has positions for, or None if none says."""
        configs = [self.config(side).to_dict() for side in self.sides]
        longest = [c.get("max_position_embeddings") or c.get("n_positions") for c in configs]
        return min((int(n) for n in longest if n), default=None)

    def config(self, side: str) -> Any:
        """The text part of a side's transformers config."""
        body = self.plan.body(side)
        if body not in self._configs:
            self._configs[body] = tokens.read_config(self.source(body), self.plan.trust_remote_code)
        return self._configs[body]

    def adapter_config(self, side: str) -> dict[str, Any] | None:
        """The adapter_config.json of an adapter side, else None."""
        return adapters.read_adapter_config(self.source(side)) if self.kind(side) == "adapter" else None

    def identity(self, side: str) -> str:
        """SHA-256 of the side's content, however its files are cut and wherever they lie."""
        return identity.identity(self.source(side))

    def tokenizer_identity(self) -> str:
        """SHA-256 of the tokenizer and its chat template."""
        return tokens.tokenizer_identity(self.tokenizer)

    # What is in memory.

    def load(self) -> Pair:
        """Loads now what would be loaded on first use, so that every error of it comes now."""
        _ = self._loaded
        return self

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        self._held = None
        self._active = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @property
    def base(self) -> Side:
        return Side(self, BASE)

    @property
    def tuned(self) -> Side:
        return Side(self, TUNED)

    def side(self, name: str) -> Side:
        self.plan.check(name)
        return Side(self, name)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of both sides: the base's, with a chat template if either side has one."""
        return self._loaded.tokenizers[BASE]

    def side_tokenizer(self, side: str) -> Any:
        """The side's own tokenizer; the base's very object where it brings none."""
        self.plan.check(side)
        return self._loaded.tokenizers[side]

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary that all sides share."""
        shared = self._loaded.shared
        return head_rows(self._loaded.parts[BASE]) if shared is None else len(shared)

    @property
    def shared_ids(self) -> Int[Tensor, "vocab"] | None:
        """Base token ids of the shared vocabulary, in order; None where it is all of the base's."""
        return self._loaded.shared

    def shared_index(self, ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Row in the shared vocabulary of every base token id; -1 where a token is not shared."""
        shared = self._loaded.shared
        if shared is None:
            return ids
        table = torch.full((head_rows(self._loaded.parts[BASE]),), -1, dtype=torch.long)
        table[shared] = torch.arange(len(shared))
        return table.to(ids.device)[ids]

    def alignment(self, side: str) -> Alignment | None:
        """How the side's vocabulary meets the base's; None on the base itself."""
        self.plan.check(side)
        return self._loaded.alignments.get(side)

    def rows(self, side: str) -> Int[Tensor, "vocab"] | None:
        """The side's own ids of the shared vocabulary, in base order; None where they are 0, 1, 2, ... to the end."""
        self.plan.check(side)
        return side_rows(self._loaded, side)

    def translated(self, side: str, ids: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Base token ids as the side's own; a ModelError for a token that the side lacks."""
        alignment = self.alignment(side)
        if alignment is None or alignment.to_side is None:
            return ids
        theirs = alignment.to_side.to(ids.device)[ids]
        lacking = theirs < 0
        if bool(lacking.any()):
            token = self.tokenizer.convert_ids_to_tokens(int(ids[lacking][0]))
            raise ModelError(f"The text holds the token {token!r}, which the base has and '{side}' lacks.")
        return theirs

    def fit(self, side: str) -> adapters.Fit | None:
        """How an adapter's keys met the model; None on other sides."""
        self.plan.check(side)
        return self._loaded.fits.get(side)

    def adapter(self, side: str) -> tuple[Any, str]:
        """The PEFT model and the adapter's name in it, for what must read an adapter's own tensors."""
        if self.kind(side) != "adapter":
            raise ModelError(f"'{side}' is not an adapter.")
        return self._loaded.peft, self._loaded.names[side]

    def memory(self) -> dict[str, Any]:
        """Bytes of parameters and buffers: in total, of the base (with the adapters on it), that each full side adds to
        it, of each full side that are held once because they are bit-identical with the base's (on another device nothing
        is), and on each device."""
        models = {name: part.model for name, part in self._loaded.parts.items()}
        base = loading.unique_bytes(models[BASE])
        own = {
            side: loading.unique_bytes(models[BASE], m) - base for side, m in models.items() if side != BASE
        }
        devices = loading.bytes_by_device(*models.values())
        found = {"total": sum(devices.values()), "base": base, "sides": own}
        return found | {"shared": dict(self._loaded.bytes_shared), "devices": devices}

    # Running it.

    @contextmanager
    def open(self, side: str) -> Iterator[Any]:
        """The side's transformers model in its adapter state; the state before comes back, whatever happens inside."""
        self.plan.check(side)
        held, before = self._loaded, self._active
        wanted = held.names.get(side)
        try:
            if wanted != before:
                self._switch(wanted)
            yield held.parts[self.plan.body(side)].model
        finally:
            if self._active != before:
                self._switch(before)

    def generate(
        self,
        prompts: Sequence[generate.Chat],
        *,
        which: Sequence[str] = (BASE, TUNED),
        system: str | None = None,
        template: str | None = None,
        decoding: Decoding | None = None,
        thinking: bool = False,
        mixed: bool | None = None,
    ) -> dict[str, list[generate.Spoken]]:
        """Each side's answers, `decoding.samples` to a prompt, prompt by prompt.

        prompts: user messages, or conversations as lists of {"role", "content"}. system: put before those without one.
        template: a chat template instead of the tokenizer's. thinking: it is asked to let the model think first. mixed:
        all sides in one batch, which a ModelError refuses where sides are more than plain LoRA adapters; None: where it
        can be, else one side after the other, in batches of one shape. The tokens are the same in float32, whatever the
        batch.
        """
        return generate.answer(
            self,
            prompts,
            which=which,
            system=system,
            template=template,
            decoding=decoding,
            thinking=thinking,
            mixed=mixed,
        )

    def trunk(
        self,
        side: str,
        ids: Int[Tensor, "batch pos"],
        attention: Int[Tensor, "batch pos"],
        layers: tuple[int, ...] = (),
        final: bool = True,
    ) -> Hidden:
        """Hidden states of a right-padded batch of base token ids; no logits are computed.

        Equal, bit for bit, to the hidden states of the side's plain transformers model on the same batch; on the pair's
        device, wherever the side is.
        """
        parts = self._loaded.parts[self.plan.body(side)]
        there = self.place(side).device
        with self.open(side):
            ids = self.translated(side, ids.to(there))
            seen = run_trunk(parts, ids, attention.to(there), layers, final)
        last = None if seen.final is None else seen.final.to(self.device)
        return Hidden(last, {layer: hidden.to(self.device) for layer, hidden in seen.layers.items()})

    def head(self, side: str) -> Head:
        """The side's head over the shared vocabulary, in base-token order."""
        self.plan.check(side)
        held = self._loaded
        if side not in held.heads:
            with self.open(side):
                held.heads[side] = read_head(held, self.plan, side, self.config(side))
        return held.heads[side]

    def normed(
        self, side: str, hidden: Float[Tensor, "row d_model"], *, exact: bool = False
    ) -> Float[Tensor, "row d_model"]:
        """The side's own final norm, on residual states of any layer. exact: in float32 whatever the model's dtype."""
        parts = self._loaded.parts[self.plan.body(side)]
        with self.open(side), torch.inference_mode():
            there = next((one.device for one in parts.norm.parameters()), self.place(side).device)
            if not exact:
                return parts.norm(hidden.to(there)).to(self.device)
            return copy.deepcopy(parts.norm).float()(hidden.to(there).float()).to(self.device)

    def lens(
        self, side: str, vectors: Float[Tensor, "row d_model"], *, direction: bool
    ) -> Float[Tensor, "row vocab"]:
        """Residual vectors read through the side's final norm and head, float32, on the CPU.

        direction: `vectors` are differences; the norm's shift, the head's bias and its cap are left out, so that
        lens(-v) = -lens(v). Otherwise they are states, and the result is the logits of a logit lens.
        """
        head = self.head(side)
        with torch.inference_mode():
            seen = self.normed(side, vectors, exact=True)
            if direction:
                seen = seen - self.normed(side, torch.zeros_like(vectors[:1]), exact=True)
                return (seen @ head.weight.float().T * head.scale).cpu()
            bias = None if head.bias is None else head.bias.float()
            return replace(head, weight=head.weight.float(), bias=bias).logits(seen).cpu()

    @property
    def vocabulary(self) -> words.Vocabulary:
        """The shared vocabulary, token by token; made when first asked for."""
        held = self._loaded
        if held.vocabulary is None:
            shared = held.shared
            ids = range(head_rows(held.parts[BASE])) if shared is None else shared.tolist()
            held.vocabulary = words.vocabulary(self.tokenizer, list(ids), self.head(BASE).weight)
        return held.vocabulary

    def same_head(self, side: str) -> bool:
        """Whether the side's head is the base's own: same values, scale and cap."""
        ours, theirs = self.head(BASE), self.head(side)
        same = self._loaded.same
        if side not in same:
            same[side] = ours.same_as(theirs)
        return same[side]

    @contextmanager
    def scale_adapter(self, side: str, factor: float) -> Iterator[None]:
        """Multiplies the change that a LoRA side makes by `factor` inside (for dose matching)."""
        if self.kind(side) != "adapter":
            raise ModelError(
                f"'{side}' is not an adapter: only the change that a LoRA adapter makes can be scaled."
            )
        held, name = self._loaded, self._loaded.names[side]
        if any(name in layer.lora_variant for layer in adapters.lora_layers(held.peft, name).values()):
            raise ModelError(
                f"'{side}' is a DoRA adapter (or alike), whose change is not proportional to its scaling."
            )
        if adapters.saved_modules(held.peft, name):
            raise ModelError(f"'{side}' replaces whole modules (modules_to_save), which cannot be scaled.")
        # A head that the adapter changes is another one inside; any other head may be kept.
        kept = held.heads.pop(side, None) if not held.same.get(side, False) else None
        try:
            with adapters.scaled(held.peft, name, factor):
                yield
        finally:
            if kept is not None:
                held.heads[side] = kept
            elif not held.same.get(side, False):
                held.heads.pop(side, None)

    # Inside.

    @property
    def _loaded(self) -> Loaded:
        if self._held is None:
            self._held = assemble(self.plan)
        return self._held

    def _switch(self, name: str | None) -> None:
        adapters.switch(self._loaded.peft, name)
        self._active = name
