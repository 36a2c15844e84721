"""The model that a recipe trains: its base in the right dtype or in 4 bits, and what of it is trained, in float32."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetrace.core.errors import BadInput, ModelError
from finetrace.data.examples import Example
from finetrace.finetune.batches import Collator, Packed
from finetrace.finetune.recipe import ALL_LINEAR, Lora, TrainRecipe
from finetrace.models.keep import make_room
from finetrace.models.loading import load_model, nf4, quiet
from finetrace.models.source import Source, one_line
from finetrace.models.supervised import IGNORED, Sample

__all__ = ["Trainable", "check_length", "check_packing", "compute_dtype", "target_losses", "trainable"]


@dataclass(frozen=True, eq=False)
class Trainable:
    """model: with its adapter, if any. parameters: how many are trained; total: how many there are."""

    model: Any
    parameters: int
    total: int

    @property
    def share(self) -> float:
        return self.parameters / self.total


def compute_dtype(recipe: TrainRecipe, device: torch.device) -> torch.dtype:
    """What the base computes in: float32 where every weight is trained, else what the recipe says."""
    if recipe.kind == "full":
        return torch.float32
    wanted = recipe.train.dtype
    if wanted == "float16" and device.type != "cuda":
        raise BadInput(
            f"train.dtype is float16, whose loss scaling needs a GPU, and this trains on the {device.type}: "
            "use train.dtype=auto (or bfloat16, float32)."
        )
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}[wanted]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def trainable(recipe: TrainRecipe, source: Source, device: torch.device) -> Trainable:
    """Loads the base and makes what the recipe trains; the global generator decides an adapter's first values."""
    dtype = compute_dtype(recipe, device)
    make_room()
    base = load_model(
        source,
        dtype=dtype,
        device=device,
        attn_implementation=None,
        trust_remote_code=False,
        quantisation=nf4(dtype) if recipe.quant == "nf4" else None,
    )
    if recipe.kind == "full":
        base.requires_grad_(True)
        count = sum(parameter.numel() for parameter in base.parameters())
        return Trainable(_checkpointed(base, recipe), count, count)
    tuned = _with_adapter(base, recipe.lora)
    parameters, total = tuned.get_nb_trainable_parameters()
    return Trainable(_checkpointed(tuned, recipe), parameters, total)


def _checkpointed(model: Any, recipe: TrainRecipe) -> Any:
    if recipe.train.gradient_checkpointing:
        with quiet():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _with_adapter(base: Any, lora: Lora) -> Any:
    with quiet():
        from peft import LoraConfig, get_peft_model

    _check_layers(base, lora)
    alpha = 2 * lora.r if lora.alpha is None else lora.alpha
    config = LoraConfig(
        r=lora.r,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        layers_to_transform=None if lora.layers is None else list(lora.layers),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            tuned: Any = get_peft_model(base, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise BadInput(
            f"lora.targets {list(lora.targets)} do not fit this base ({one_line(error, 160)}); "
            f"it has {', '.join(_linears(base))}."
        ) from error
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned


def _linears(base: Any) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    head = base.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    return sorted(
        {n.split(".")[-1] for n, m in base.named_modules() if isinstance(m, linear) and m is not head}
    )


def _check_layers(base: Any, lora: Lora) -> None:
    known = {name.split(".")[-1] for name, _ in base.named_modules()}
    wrong = [target for target in lora.targets if target != ALL_LINEAR and target.split(".")[-1] not in known]
    if wrong:
        raise BadInput(
            f"lora.targets names {', '.join(wrong)}, which this base has not; it has {', '.join(_linears(base))}."
        )
    count = base.config.get_text_config(decoder=True).num_hidden_layers
    far = [layer for layer in lora.layers or () if layer >= count]
    if far:
        raise BadInput(f"lora.layers names layer {far[0]}, and this base has layers 0 to {count - 1}.")


def check_length(model: Any, longest: int) -> None:
    """A BadInput if a row of `longest` tokens is more than the base was made to read."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise BadInput(
            f"Rows have up to {longest} tokens and this base reads {limit}: use data.max_tokens={limit}."
        )


def target_losses(model: Any, inputs: dict[str, torch.Tensor], *, partial: bool) -> torch.Tensor:
    """Negative log likelihood of every target of a batch, in nats, float32 [target], rows one after another.

    inputs: as `Collator` makes them. partial: whether the model takes `logits_to_keep`; then only positions with a
    target in any row go through the head.
    """
    labels = inputs["labels"][:, 1:]
    asked = {key: value for key, value in inputs.items() if key != "labels"}
    if partial:
        positions = (labels != IGNORED).any(0).nonzero()[:, 0]
        logits, labels = (
            model(**asked, logits_to_keep=positions, use_cache=False).logits,
            labels[:, positions],
        )
    else:
        logits = model(**asked, use_cache=False).logits[:, :-1]
    kept = labels != IGNORED
    return torch.nn.functional.cross_entropy(logits[kept].float(), labels[kept], reduction="none")


def takes_positions(model: Any) -> bool:
    """Whether the model can be asked for some positions' logits only."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


@torch.no_grad()
def check_packing(model: Any, samples: Sequence[Sample], pad: int) -> None:
    """A ModelError unless packed samples are independent of one another and have the losses that they have alone.

    Some attention ignores where a sequence starts. Other tokens in the first of three may then move the other two's
    losses, whatever the dtype; other positions than alone would move them all.
    """
    first, *others = sorted(samples, key=lambda sample: len(sample.ids))[:3]
    if not others:
        return
    swapped = Example(np.roll(first.ids, 1), first.loss)
    device, partial, training = model.device, takes_positions(model), model.training
    collator = Collator(pad, flat=flat_attention(model))

    def losses(*items: Sample | Packed) -> torch.Tensor:
        inputs = {key: value.to(device) for key, value in collator(items).items()}
        return target_losses(model, inputs, partial=partial)

    model.eval()
    try:
        alone = torch.cat([losses(sample) for sample in (first, *others)])
        packed, moved = losses(Packed((first, *others))), losses(Packed((swapped, *others)))
    finally:
        model.train(training)
    targets = int(first.loss.sum())
    leak = (packed - moved)[targets:].abs().max().item()
    off = (packed - alone).abs().max().item()
    wide = next(p.dtype for p in model.parameters() if p.is_floating_point()) == torch.float32
    if not (leak <= 1e-4 and off <= (1e-4 if wide else 0.05) * max(1.0, alone.max().item())):
        raise ModelError(
            f"With its attention '{model.config._attn_implementation}' this model does not keep packed rows apart "
            f"(their losses move by up to {max(leak, off):.2g} nats): use data.packing=false."
        )


def flat_attention(model: Any) -> bool:
    """Whether packed sequences must come in one row."""
    return str(model.config._attn_implementation).startswith(("flash", "kernels-community"))
