"""Where training begins: how rows are normalised, and weights of which the encoder is the decoder's transpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from finetrace.core.errors import DataError
from finetrace.dictionaries.dictionary import BASE_ONLY, SHARED, TUNED_ONLY
from finetrace.dictionaries.findings import STILL, Untrainable
from finetrace.dictionaries.losses import Parameters
from finetrace.dictionaries.settings import Training

__all__ = ["Scale", "owners", "parameters", "scale_of", "take"]

_MEDIAN_ROUNDS, _STILL = 50, 1e-6


@dataclass(frozen=True)
class Scale:
    """mean, scale: see `Dictionary`. centre: where the decoder's bias begins, normalised, both models beside one another."""

    mean: Float[Tensor, "model d"]
    scale: Float[Tensor, " model"]
    centre: Float[Tensor, " wide"]

    def normalise(self, x: Float[Tensor, "row model d"]) -> Float[Tensor, "row wide"]:
        return ((x.float() - self.mean) * self.scale[:, None]).flatten(1)

    def spread(self) -> tuple[float, ...]:
        """Per model: makes normalised errors of both models comparable, with a geometric mean of 1."""
        middle = self.scale.double().log().mean().exp()
        return tuple((middle / self.scale.double()).tolist())


def take(rows: Iterator[Float[Tensor, "row model d"]], count: int) -> Float[Tensor, "row model d"]:
    """The first `count` rows, or all that there are."""
    parts: list[Tensor] = []
    missing = count
    for some in rows:
        parts.append(some[:missing].float())
        missing -= parts[-1].shape[0]
        if missing <= 0:
            break
    if not parts:
        raise DataError(
            "There are no rows to train a dictionary on: no token was kept, or the corpus is empty."
        )
    return torch.cat(parts)


def scale_of(sample: Float[Tensor, "row model d"], training: Training) -> Scale:
    """From a sample: its mean, and one scalar a model that makes the mean norm of what is left the square root of d."""
    d = sample.shape[2]
    mean = sample.double().mean(0).float()
    centred = sample - mean
    norms = centred.norm(dim=2).double().mean(0)
    for model, (norm, size) in enumerate(zip(norms.tolist(), mean.norm(dim=1).tolist(), strict=True)):
        # Rounding alone leaves about 1e-7 of the mean.
        if norm <= 1e-6 * size or norm == 0:
            raise Untrainable(
                STILL,
                f"All {sample.shape[0]} rows of {_side(model, sample.shape[1])} are the same: there is nothing to read in "
                "them. Is this the layer, and the difference, that was meant?",
            )
    scale = (d**0.5 / norms).float()
    normalised = (centred * scale[:, None]).flatten(1)
    centre = _median(normalised) if training.bias == "median" else torch.zeros_like(normalised[0])
    return Scale(mean, scale, centre)


def owners(training: Training) -> Int8[Tensor, " latent"]:
    """Shared latents first, then the base's own, then the tuned model's."""
    owner = torch.full((training.latents,), SHARED, dtype=torch.int8)
    if each := training.exclusive_latents():
        owner[-2 * each : -each], owner[-each:] = BASE_ONLY, TUNED_ONLY
    return owner


def parameters(training: Training, models: int, d: int, centre: Float[Tensor, " wide"]) -> Parameters:
    """Random decoder directions, the same for both models; a latent's decoder is of norm 1 over all models together."""
    generator = torch.Generator().manual_seed(training.seed)
    one = torch.randn(training.latents, d, generator=generator)
    decoder = one.repeat(1, models)
    each = training.exclusive_latents()
    if each:
        decoder[-2 * each : -each, d:] = 0.0
        decoder[-each:, :d] = 0.0
    decoder = (decoder / decoder.norm(dim=1, keepdim=True)).to(centre.device)
    encoder = decoder.T.contiguous()
    return Parameters(encoder, -(centre @ encoder), decoder.contiguous(), centre.clone())


def _median(rows: Float[Tensor, "row wide"]) -> Float[Tensor, " wide"]:
    """The geometric median, by Weiszfeld's steps: a first token of a hundred times the norm hardly moves it."""
    centre = rows.mean(0)
    for _ in range(_MEDIAN_ROUNDS):
        weights = 1 / (rows - centre).norm(dim=1).clamp_min(1e-6)
        moved = (weights @ rows) / weights.sum()
        still = float((moved - centre).norm()) <= _STILL * rows.shape[1] ** 0.5
        centre = moved
        if still:
            break
    return centre


def _side(model: int, models: int) -> str:
    return "the hidden states" if models == 1 else ("the base", "the tuned model")[model]
