"""Supervised samples through a causal model: padding them into a batch, and the loss that only their targets count in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetrace.models.head import scale_and_cap

IGNORED = -100
"""The label of a token that is no target, as transformers has it."""


class Sample(Protocol):
    """ids: int [pos]. loss: bool [pos], true where the token is a target; the first token is never one."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def loss(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Supervised:
    """A right-padded batch. labels: the token itself where it is a target, IGNORED elsewhere."""

    ids: Int[Tensor, "batch pos"]
    attention: Int[Tensor, "batch pos"]
    labels: Int[Tensor, "batch pos"]


def collate(samples: Sequence[Sample], pad: int, device: torch.device | str = "cpu") -> Supervised:
    """Right-pads samples with the token `pad`; padding is no target and is not attended to."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), longest), pad)
    labels = torch.full((len(samples), longest), IGNORED)
    mask = torch.zeros((len(samples), longest), dtype=torch.long)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        ids[row, :length] = torch.from_numpy(np.asarray(sample.ids).astype("int64"))
        mask[row, :length] = 1
        labels[row, :length] = torch.where(torch.from_numpy(sample.loss), ids[row, :length], IGNORED)
    return Supervised(ids.to(device), mask.to(device), labels.to(device))


def sample_losses(model: Any, batch: Supervised) -> Float[Tensor, "batch"]:
    """Mean negative log likelihood of each row's targets, in nats a token, float32 whatever the model's dtype.

    model: a transformers causal language model, with or without PEFT around it, in the state that it is in (adapter on
    or off, gradients or none). Only targets go through the head, as a two-dimensional input. A row without a target is
    NaN.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = model.get_decoder()
    hidden = decoder(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    kept = targets != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][kept])
    scale, cap = scale_and_cap(model.config.get_text_config(decoder=True))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    token = cross_entropy(logits, targets[kept], reduction="none")
    row = kept.nonzero()[:, 0]
    total = torch.zeros(len(kept), dtype=token.dtype, device=token.device).index_add(0, row, token)
    return total / kept.sum(1)
