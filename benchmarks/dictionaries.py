"""The cases `sae` and `crosscoder`: steps of training a BatchTopK dictionary, beside a trainer in float32 with a graph.

Both train the same weights on the same rows to the same loss (reconstruction, and the dead latents' own): how equal their
losses are is shown. Rows are sparse sums of planted directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from finetrace.dictionaries.dictionary import code_weights
from finetrace.dictionaries.settings import Training
from finetrace.dictionaries.start import Scale, parameters, scale_of
from finetrace.dictionaries.trainer import Trainer

_K, _PER_D, _BATCHES, _ACTIVE = 64, 16, 2, 20
_LOSSES = 8
"""Steps over which losses are compared."""
_EQUAL = {"ours_float32": 1e-3, "ours": 1e-2}


class Peer:
    """The usual way: parameters with a graph, a sort of all codes, Adam as it comes. Products in `product`, by autocast."""

    def __init__(self, training: Training, scale: Scale, product: torch.dtype) -> None:
        self.training, self.scale, self.product = training, scale, product
        self.models, self.d = scale.mean.shape
        start = parameters(training, self.models, self.d, scale.centre)
        self.weights = [tensor.requires_grad_() for tensor in start.tensors()]
        self.adam = torch.optim.Adam(self.weights, lr=training.peak_rate())
        self.idle = torch.zeros(training.latents, dtype=torch.int64)
        self.step = 0

    def learn(self, x: Tensor) -> float:
        training, rows = self.training, x.shape[0]
        encoder, encoder_bias, decoder, decoder_bias = self.weights
        z = self.scale.normalise(x)
        dead = (self.idle >= training.idle_rows()).nonzero().squeeze(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.product == torch.bfloat16):
            codes = (z @ encoder + encoder_bias).relu()
            kept = self._kept(codes, decoder, rows * training.k)
            error = (codes * kept) @ decoder + decoder_bias - z
            loss = error.square().sum() / rows
            if dead.numel():
                loss = loss + self._aux(codes[:, dead], decoder[dead], error.detach())
        self.adam.zero_grad()
        loss.backward()
        self._move(decoder)
        self.idle += rows
        self.idle[kept.any(0)] = 0
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _kept(self, codes: Tensor, decoder: Tensor, count: int) -> Tensor:
        strength = codes
        if self.models == 2:
            split = decoder.view(-1, self.models, self.d).transpose(0, 1)
            strength = codes * code_weights(split, self.training.code_norm)
        flat = strength.flatten()
        kept = torch.zeros_like(flat, dtype=torch.bool)
        kept[flat.topk(min(count, flat.numel()), sorted=False).indices] = True
        return (kept & (flat > 0)).view_as(codes)

    def _aux(self, codes: Tensor, decoder: Tensor, error: Tensor) -> Tensor:
        count = min(codes.shape[0] * max(1, self.d // 2), codes.numel())
        kept = self._kept(codes, decoder, count)
        return self.training.aux_alpha * ((codes * kept) @ decoder + error).square().sum() / codes.shape[0]

    @torch.no_grad()
    def _move(self, decoder: Tensor) -> None:
        if self.models == 1 and decoder.grad is not None:
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
        self.adam.param_groups[0]["lr"] = self.training.rate_at(self.step)
        self.adam.step()
        if self.models == 1:
            decoder /= decoder.norm(dim=1, keepdim=True)


def sae_case(preset: Preset, dtype: torch.dtype) -> Case:
    return _case("sae", 1, 2.5, preset, dtype)


def crosscoder_case(preset: Preset, dtype: torch.dtype) -> Case:
    return _case("crosscoder", 2, 2.0, preset, dtype)


def _case(name: str, models: int, least: float, preset: Preset, dtype: torch.dtype) -> Case:
    d = 512 if preset.d >= 256 else preset.d
    training = Training(
        latents=_PER_D * d,
        k=_K,
        batch=2 * d // models,
        # At full speed from the first step, so that the losses which are compared fall.
        steps=2000,
        warmup=0.0,
        dead_after=4 * d,
        dtype="float32" if dtype == torch.float32 else "bfloat16",
    )
    wide, latents, rows = models * d, training.latents, training.batch
    # Encode, decode and what comes back through the decoder; two products make the gradients.
    shapes = [(rows, wide, latents)] * 2 + [
        (rows, latents, wide),
        (latents, rows, wide),
        (wide, rows, latents),
    ]
    shapes *= _BATCHES
    flop = 2 * sum(a * b * c for a, b, c in shapes)
    trainers: dict[str, Callable[[Scale], Any]] = {
        "peer": lambda scale: Peer(training, scale, torch.float32),
        "peer_autocast": lambda scale: Peer(training, scale, torch.bfloat16),
        "ours": lambda scale: Trainer(training, scale),
        "ours_float32": lambda scale: Trainer(replace(training, dtype="float32"), scale),
    }
    moments = {"weights and moments": 12 * (2 * wide * latents + wide + latents)}
    arms = {arm: Arm(partial(_open, make, models, training), flop, moments) for arm, make in trainers.items()}
    return Case(
        name,
        arms | {"floor": Arm(lambda: products(shapes, dtype), flop)},
        "work",
        partial(goal, least),
        ("ours",),
        accuracy=lambda: losses(trainers, models, training),
        notes=lambda: {"d": d, "latents": latents, "k": training.k, "batch": rows, "steps_a_call": _BATCHES},
    )


def batches(models: int, training: Training, d: int) -> list[Tensor]:
    """[row, model, d]: sums of about _ACTIVE of latents / 2 directions, a tenth of which the tuned model alone has."""
    generator = torch.Generator().manual_seed(0)
    features = training.latents // 2
    directions = torch.randn(models, features, d, generator=generator)
    directions[1:] = directions[:1] + 0.1 * directions[1:]
    if models == 2:
        directions[0, : features // 10] = 0.0
    made: list[Tensor] = []
    for _ in range(_BATCHES):
        on = torch.rand(training.batch, features, generator=generator) < _ACTIVE / features
        codes = on * (1 + torch.rand(training.batch, features, generator=generator))
        made.append(torch.stack([codes @ own for own in directions], 1))
    return made


def _d(training: Training) -> int:
    return training.latents // _PER_D


def _open(make: Callable[[Scale], Any], models: int, training: Training) -> Work:
    rows = batches(models, training, _d(training))
    trainer = make(scale_of(rows[0], training))

    def work() -> None:
        for x in rows:
            trainer.learn(x)

    return work


def losses(
    trainers: Mapping[str, Callable[[Scale], Any]], models: int, training: Training
) -> list[dict[str, float]]:
    """Of each trainer, step by step from the same weights on the same rows: loss over d, the peer's, and how far ours is."""
    rows = batches(models, training, _d(training))
    scale = scale_of(rows[0], training)
    seen: dict[str, list[float]] = {}
    for name, make in trainers.items():
        trainer = make(scale)
        seen[name] = [_loss(trainer.learn(rows[step % len(rows)])) for step in range(_LOSSES)]
    return [
        {"step": step + 1.0, "peer": round(peer / _d(training), 5)}
        | {name: float(f"{abs(own[step] - peer) / peer:.2g}") for name, own in seen.items() if name != "peer"}
        for step, peer in enumerate(seen["peer"])
    ]


def _loss(found: Any) -> float:
    return found if isinstance(found, float) else found.loss.total


def goal(least: float, figures: Mapping[str, Any]) -> dict[str, Any]:
    """So many times as fast, with losses that stay equal: in float32 to rounding, in bfloat16 to a hundredth."""
    off = {name: max(row[name] for row in figures["accuracy"]) for name in _EQUAL}
    ratio = figures["arms"]["ours"]["ratio"]["median"]
    return {
        "name": f">= {least} times a float32 trainer with a graph; losses equal",
        "measured": ratio,
        "off": off,
        "bound": round(figures["arms"]["peer"]["seconds"] / figures["arms"]["floor"]["seconds"], 2),
        "reached": ratio >= least and all(off[name] <= most for name, most in _EQUAL.items()),
    }
