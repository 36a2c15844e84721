"""What a drift at the margin is worth in behaviour: the safety answers with the group's change scaled, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from finetrace.core.estimate import Estimate
from finetrace.data.examples import Example
from finetrace.methods.neuron_drift.result import Anchor
from finetrace.models.supervised import collate, sample_losses
from finetrace.stats import mean_interval
from finetrace.weights.anchor import group_scaled
from finetrace.weights.delta import Delta
from finetrace.weights.groups import Group

_FEWEST = 2


def anchored(
    opened: AbstractContextManager[Any],
    deltas: Mapping[str, Delta],
    group: Group,
    samples: Sequence[Example],
    factor: float,
    *,
    pad: int,
    batch: int,
) -> Anchor | None:
    """The tuned model's loss and first-token mass on the safety samples, as it is and with the group's change times factor.

    opened: gives the tuned transformers model. None where the fine-tune touches no weight of the group.
    """
    touched = {module: delta for module, delta in deltas.items() if len(group.of(module))}
    if not touched or len(samples) < _FEWEST:
        return None
    with opened as model:
        before = _measured(model, samples, pad, batch)
        with group_scaled(model, touched, group, factor):
            after = _measured(model, samples, pad, batch)
    loss, mass = (
        _change(x, y, unit) for x, y, unit in zip(before, after, ("nats/token", "probability"), strict=True)
    )
    return Anchor(group.name, factor, float(before[0].mean()), float(before[1].mean()), loss, mass)


def first_tokens(samples: Sequence[Example]) -> list[int]:
    """The tokens that the samples' answers begin with."""
    return sorted({int(sample.ids[int(sample.loss.argmax())]) for sample in samples})


@torch.no_grad()
def _measured(model: Any, samples: Sequence[Example], pad: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Per sample, float64: mean loss of its answer; probability, at its first token, of the tokens that answers begin with."""
    tokens = first_tokens(samples)
    losses: list[float] = []
    masses: list[float] = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        padded = collate(part, pad, model.device)
        losses += sample_losses(model, padded).double().tolist()
        before = torch.tensor([int(sample.loss.argmax()) - 1 for sample in part], device=model.device)
        logits = model(input_ids=padded.ids, attention_mask=padded.attention, use_cache=False).logits
        chance = logits[torch.arange(len(part), device=model.device), before].double().softmax(-1)
        masses += chance[:, tokens].sum(-1).tolist()
    return np.array(losses), np.array(masses)


def _change(before: np.ndarray, after: np.ndarray, unit: str) -> Estimate:
    """Mean change over samples, paired, with its 95% interval."""
    gap, one = after - before, np.ones(len(before))
    found = mean_interval(gap, one, np.arange(len(gap), dtype=np.uint64))
    low, high = (found.low, found.high) if found else (None, None)
    return Estimate(float(gap.mean()), unit, len(gap), len(gap), low, high)
