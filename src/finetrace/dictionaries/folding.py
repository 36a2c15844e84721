"""One model's dictionary as the plain matrices that other tools keep: normalisation and weights of codes folded in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.dictionaries.dictionary import Dictionary, code_weights

__all__ = ["Folded", "by_norm", "folded", "level"]

_SAME = 1e-5
_NEVER = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Folded:
    """codes = (x - centre) @ encoder + bias, those above `thresholds` (and above 0); read back as codes @ decoder + centre.

    float32. thresholds: all 0 for a plain ReLU.
    """

    encoder: Float[Tensor, "d latent"]
    bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d"]
    centre: Float[Tensor, " d"]
    thresholds: Float[Tensor, " latent"]


def folded(dictionary: Dictionary) -> Folded:
    """The same codes and the same reconstructions without a normalisation, for a dictionary of one model.

    (x - mean) * scale, and codes @ decoder + decoder_bias turned back, centre on mean + decoder_bias / scale once the
    encoder's bias has taken up decoder_bias @ encoder: states far from 0 then lose nothing to rounding. In float64.
    """
    encoder, decoder = dictionary.encoder[0].double(), dictionary.decoder[0].double()
    scale, own = dictionary.scale[0].double(), dictionary.decoder_bias[0].double()
    weights = code_weights(dictionary.decoder, dictionary.code_norm)[0].double()
    asked = torch.full_like(weights, dictionary.threshold)
    if dictionary.thresholds is not None:
        asked = dictionary.thresholds.double()
    # A weight of 0 (a latent that writes nothing) leaves no code above any threshold.
    needed = torch.where(weights > 0, asked / weights.clamp(min=1e-300), _NEVER).clamp(max=_NEVER)
    parts = {
        "encoder": encoder * scale,
        "bias": dictionary.encoder_bias.double() + own @ encoder,
        "decoder": decoder / scale,
        "centre": dictionary.mean[0].double() + own / scale,
        "thresholds": needed,
    }
    return Folded(**{name: part.float().cpu().contiguous() for name, part in parts.items()})


def level(values: Float[Tensor, " latent"]) -> float | None:
    """The one value that all have, to 1 part in 100,000; None where they differ by more."""
    low, high = float(values.min()), float(values.max())
    return float(values.double().mean()) if high - low <= _SAME * abs(high) else None


class Scaled(NamedTuple):
    encoder: Float[Tensor, "d latent"]
    bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d"]


def by_norm(
    encoder: Float[Tensor, "d latent"],
    bias: Float[Tensor, " latent"],
    decoder: Float[Tensor, "latent d"],
    least: float = 0.0,
) -> Scaled:
    """The same reconstructions by codes that are multiplied by the norms of their decoder rows. least: what a shorter norm
    counts as."""
    norms = torch.linalg.vector_norm(decoder, dim=1, dtype=torch.float64).clamp(min=least)
    # In float32: what is folded may be as large as the machine.
    shrunk = decoder / norms.clamp(min=torch.finfo(torch.float32).tiny)[:, None].float()
    return Scaled(
        (encoder * norms.float()).contiguous(),
        bias * norms.float(),
        shrunk.contiguous(),
    )
