"""From final hidden states to logits: the head's effective tensors on each side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import ModelError


@dataclass(frozen=True)
class Head:
    """logits = cap(scale * (hidden @ weight.T + bias)), cap(z) = softcap * tanh(z / softcap) where there is one.

    weight [vocab, d_model], bias [vocab] or None, over the shared vocabulary in base-token order. A head that an
    adapter changes is in float32 whatever the pair's dtype: rounding would eat a small change.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits of 2-D hidden states, in the weight's dtype."""
        plain = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            plain = plain * self.scale
        return plain if self.softcap is None else self.softcap * torch.tanh(plain / self.softcap)

    def same_as(self, other: Head) -> bool:
        """Whether both give the same logits for the same hidden states: equal tensors, scale and cap."""
        same_shape = (self.scale, self.softcap) == (other.scale, other.softcap)
        return same_shape and _equal(self.weight, other.weight) and _equal(self.bias, other.bias)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def output_module(model: Any) -> nn.Module:
    """The module that makes logits (as an adapter may have wrapped it)."""
    module = model.get_output_embeddings()
    if module is None:
        raise ModelError(
            f"{type(model).__name__} has no output head: only causal language models can be compared."
        )
    return module


def bare(module: Any) -> nn.Module:
    """The head without any adapter's wrapping."""
    while True:
        inner = dict(module.named_children())
        wrapped = [
            inner[name] for name in ("base_layer", "token_adapter", "original_module") if name in inner
        ]
        if not wrapped:
            return module
        module = wrapped[0]


def changed_by(module: Any, adapter: str) -> bool:
    """Whether the adapter changes this head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, AuxiliaryTrainingWrapper):
        inner = getattr(module, "original_module", None)
        return adapter in module._adapters or (inner is not None and changed_by(inner, adapter))
    return isinstance(module, BaseTunerLayer) and adapter in module._get_available_adapters()


def plain_tensors(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [vocab, d_model] and bias of an unwrapped head."""
    tensors = dict(module.named_parameters())
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2 or not isinstance(module, nn.Linear):
        raise ModelError(
            f"A head of type {type(module).__name__} is not understood: it is not one linear layer."
        )
    return weight, tensors.get("bias")


@torch.inference_mode()
def adapted_tensors(module: Any, adapter: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float32, of a head under the adapter, which must be the active one."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        weight, bias = plain_tensors(module.modules_to_save[adapter])
        return weight.float(), None if bias is None else bias.float()
    inner = bare(module)
    if isinstance(module, LoraLayer) and isinstance(inner, nn.Linear) and not module.lora_variant:
        weight, bias = plain_tensors(inner)
        down: Any = module.lora_A[adapter].weight
        up: Any = module.lora_B[adapter]
        changed = weight.float() + module.scaling[adapter] * (up.weight.float() @ down.float())
        offset = None if up.bias is None else module.scaling[adapter] * up.bias.float()
        parts = [part.float() for part in (bias, offset) if part is not None]
        return changed, sum(parts[1:], parts[0]) if parts else None
    return _probed(module, inner)


def _probed(module: Any, inner: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of any linear module, read off its outputs on the unit vectors."""
    width = plain_tensors(inner)[0]
    eye = torch.eye(width.shape[1], dtype=width.dtype, device=width.device)
    bias = module(torch.zeros_like(eye[:1])).float()[0]
    weight = (module(eye).float() - bias).T.contiguous()
    return weight, bias if bool(bias.any()) else None


def scale_and_cap(config: Any) -> tuple[float, float | None]:
    """The factor and the soft cap that the architecture puts on its logits (Cohere, Granite, Falcon-H1, Gemma2)."""
    fields = config.to_dict()
    scale = float(fields.get("logit_scale") or 1.0) * float(fields.get("lm_head_multiplier") or 1.0)
    scale /= float(fields.get("logits_scaling") or 1.0)
    cap = fields.get("final_logit_softcapping")
    return scale, None if cap is None else float(cap)


def take_rows(weight: Tensor, bias: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The rows of the shared vocabulary; the very same tensors where that is all of them."""
    if rows is None:
        return weight, bias
    rows = rows.to(weight.device)
    return weight[rows], None if bias is None else bias[rows]
