"""The head, over chunks of tokens: base logits once, then each other side's difference from them. Never all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from finetrace.engine.divergences import soft_capped_difference
from finetrace.models import Head

# One chunk's float32 matrix holds at most this many numbers; some ten of them are alive at once (0.3 GB in all). Just
# under 32 MB each: from there on, glibc asks the system for every buffer anew, and the first touch costs a tenth more.
_NUMBERS = 2**23 - 2**12


def chunk_tokens(vocab_size: int) -> int:
    """How many tokens go through the head at once: fixed by the vocabulary alone, so that reruns have the same shapes."""
    return max(16, min(1024, _NUMBERS // vocab_size))


def raw_logits(head: Head, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocab"]:
    """Logits before the soft cap, float32. `hidden` is 2-D: on a CPU a 3-D product may copy the weight once per row."""
    logits = F.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
    return logits if head.scale == 1.0 else logits * head.scale


def capped(head: Head, raw: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    return raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)


def raw_difference(
    base_head: Head,
    other_head: Head | None,
    base: Float[Tensor, "token d_model"],
    other: Float[Tensor, "token d_model"],
) -> Float[Tensor, "token vocab"]:
    """Other logits minus base logits before the soft cap, float32, as a product of the hidden states' difference.

    other_head: None where it is the base's own. Else: dz = (h_o - h_b) W_b^T + h_o (W_o - W_b)^T + (bias_o - bias_b).
    """
    moved = (other.float() - base.float()).to(base_head.weight.dtype)
    difference = F.linear(moved, base_head.weight).float()
    if other_head is not None:
        change = (other_head.weight.float() - base_head.weight.float()).to(base_head.weight.dtype)
        difference = difference + F.linear(other.to(change.dtype), change).float()
        if base_head.bias is not None and other_head.bias is not None:
            difference = difference + (other_head.bias.float() - base_head.bias.float())
    return difference if base_head.scale == 1.0 else difference * base_head.scale


def logit_difference(
    base_head: Head, base_raw: Float[Tensor, "token vocab"], raw: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token vocab"]:
    """The difference after the soft cap, where there is one (Gemma 2)."""
    return raw if base_head.softcap is None else soft_capped_difference(base_raw, raw, base_head.softcap)
