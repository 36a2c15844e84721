"""A dictionary in training: weights, moments, what has been dead for how long, and one step after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finetrace.dictionaries.adam import Learnt
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.findings import DEAD, DIVERGED, Untrainable
from finetrace.dictionaries.losses import Found, Loss, Parameters, loss_and_gradients
from finetrace.dictionaries.settings import Training
from finetrace.dictionaries.start import Scale, owners, parameters

__all__ = ["Progress", "Trainer"]

_MEMORY = 0.99
"""Of the running mean of the smallest kept code: about the last hundred batches."""
_GUESS = 0.9
_NAMES = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@dataclass(frozen=True)
class Progress:
    """After a step: rows seen so far, the loss of its batch, codes a row, dead latents, and where the schedules are."""

    step: int
    rows: int
    loss: Loss
    k: int
    active: float
    threshold: float
    dead: int
    lr: float


class Trainer:
    """The state of a training, all of it in `state`: restored, it goes on to the same last bit."""

    def __init__(self, training: Training, scale: Scale) -> None:
        self.training, self.scale = training, scale
        self.models, self.d = scale.mean.shape
        device = scale.mean.device
        self.masters = parameters(training, self.models, self.d, scale.centre)
        product = getattr(torch, training.dtype)
        self.learnt = [Learnt.begin(tensor, product) for tensor in self.masters.tensors()]
        self.cast = Parameters(*(one.cast for one in self.learnt))
        self.idle = torch.zeros(training.latents, dtype=torch.int64, device=device)
        self.step, self.rows, self.cut = 0, 0, 0.0
        self._mean_cut, self._weight = 0.0, 0.0

    @property
    def threshold(self) -> float:
        """The running mean of the smallest kept code, corrected for its start at 0; 0 for ReLU codes."""
        return self._mean_cut / self._weight if self._weight else 0.0

    @property
    def dead(self) -> Bool[Tensor, " latent"]:
        return self.idle >= self.training.idle_rows()

    def learn(self, x: Float[Tensor, "row model d"]) -> Progress:
        """One batch of hidden states, one step."""
        training, step = self.training, self.step
        objective = training.objective(step, self.models, self.d, self.scale.spread())
        z = self.scale.normalise(x)
        dead = self.dead.nonzero().squeeze(1)
        found = loss_and_gradients(self.masters, self.cast, z, objective, dead, _GUESS * self.cut)
        self._refuse_nonsense(found.loss)
        rate = training.rate_at(step)
        self._move(found.gradients, rate)
        self._remember(found, x.shape[0])
        self.step += 1
        return Progress(
            step=self.step,
            rows=self.rows,
            loss=found.loss,
            k=objective.k,
            active=found.active,
            threshold=self.threshold,
            dead=int(self.dead.sum()),
            lr=rate,
        )

    def dictionary(self) -> Dictionary:
        return Dictionary(
            encoder=self.masters.encoder.view(self.models, self.d, -1).clone(),
            encoder_bias=self.masters.encoder_bias.clone(),
            decoder=self.masters.by_model(self.models).contiguous().clone(),
            decoder_bias=self.masters.decoder_bias.view(self.models, self.d).clone(),
            mean=self.scale.mean,
            scale=self.scale.scale,
            owner=owners(self.training).to(self.idle.device),
            threshold=self.threshold,
            kind=self.training.kind,
            code_norm=self.training.code_norm if self.models == 2 else "none",
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep; `restore` of them makes any trainer of the same settings this one."""
        kept = {"idle": self.idle, "mean": self.scale.mean, "scale": self.scale.scale}
        kept["centre"] = self.scale.centre
        kept["counts"] = torch.tensor([self.step, self.rows])
        kept["cuts"] = torch.tensor([self.cut, self._mean_cut, self._weight], dtype=torch.float64)
        for name, one in zip(_NAMES, self.learnt, strict=True):
            kept |= {name: one.weight, f"{name}.first": one.first, f"{name}.second": one.second}
        return {name: tensor.clone().cpu().contiguous() for name, tensor in kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.idle.device
        self.idle = state["idle"].to(device)
        self.scale = Scale(*(state[name].to(device) for name in ("mean", "scale", "centre")))
        self.step, self.rows = state["counts"].tolist()
        self.cut, self._mean_cut, self._weight = state["cuts"].tolist()
        for name, one in zip(_NAMES, self.learnt, strict=True):
            one.weight.copy_(state[name])
            one.first.copy_(state[f"{name}.first"])
            one.second.copy_(state[f"{name}.second"])
            one.cast.copy_(one.weight)

    def _move(self, gradients: Parameters, rate: float) -> None:
        if each := self.training.exclusive_latents():
            gradients.decoder[-2 * each : -each, self.d :] = 0.0
            gradients.decoder[-each:, : self.d] = 0.0
        for name, one, gradient in zip(_NAMES, self.learnt, gradients.tensors(), strict=True):
            one.move(gradient, rate, self.step + 1, unit=name == "decoder" and self.models == 1)

    def _remember(self, found: Found, rows: int) -> None:
        self.rows += rows
        self.idle += rows
        self.idle[found.fired] = 0
        if found.cut is not None:
            self.cut = found.cut
            self._mean_cut = _MEMORY * self._mean_cut + (1 - _MEMORY) * found.cut
            self._weight = _MEMORY * self._weight + (1 - _MEMORY)
        if bool(self.dead.all()):
            raise Untrainable(
                DEAD,
                f"All {self.training.latents} latents are dead: none has had a code in the last "
                f"{self.training.idle_rows()} rows (step {self.step + 1}). The learning rate "
                f"({self.training.peak_rate():.2g}) or the L1 weight is too high, or `dead_after` too short.",
            )

    def _refuse_nonsense(self, loss: Loss) -> None:
        if loss.total != loss.total or loss.total == float("inf"):
            raise Untrainable(
                DIVERGED,
                f"The loss is {loss.total} at step {self.step + 1}: a lower learning rate than "
                f"{self.training.peak_rate():.2g} may help, or rows of extreme size have to be left out.",
            )
