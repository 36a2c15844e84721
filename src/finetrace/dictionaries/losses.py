"""The loss of a dictionary on a batch and its gradients, written out by hand: dense products, no graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.dictionaries.dictionary import CodeNorm, Kind, code_weights
from finetrace.dictionaries.selection import select

__all__ = ["Found", "Loss", "Objective", "Parameters", "loss_and_gradients"]


@dataclass
class Parameters:
    """The weights as they are trained; `wide` is both models beside one another (model * d). Their gradients likewise."""

    encoder: Float[Tensor, "wide latent"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent wide"]
    decoder_bias: Float[Tensor, " wide"]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.encoder, self.encoder_bias, self.decoder, self.decoder_bias

    def by_model(self, models: int) -> Float[Tensor, "model latent d"]:
        latents, wide = self.decoder.shape
        return self.decoder.view(latents, models, wide // models).transpose(0, 1)


@dataclass(frozen=True)
class Objective:
    """What is minimised, per row, in normalised units (a row's squared norm is about d for each model):

    sum over models of |r - z|² + l1 * sum of weighted codes (relu) + delta * |a_t e_t - a_b e_b|², where e = r - z, and
    aux_alpha * |what dead latents make of the error - the error|² with aux_k dead codes a row.

    spread: a, per model: turns normalised errors into a common unit, so that `delta` is about the difference of the
    hidden states themselves. k: codes a row, for each side where `code_norm` is "decoupled".
    """

    models: int
    kind: Kind
    code_norm: CodeNorm
    k: int
    l1: float = 0.0
    delta: float = 0.0
    aux_alpha: float = 0.0
    aux_k: int = 0
    spread: tuple[float, ...] = (1.0, 1.0)


@dataclass(frozen=True)
class Loss:
    """Means over rows; `total` is what the gradients are of. delta, l1, aux are already weighted."""

    total: float
    reconstruction: tuple[float, ...]
    l1: float
    delta: float
    aux: float


@dataclass(frozen=True)
class Found:
    """cut: the smallest weighted code that was kept; active: codes a row; fired: latents with a code in this batch."""

    loss: Loss
    gradients: Parameters
    fired: Bool[Tensor, " latent"]
    cut: float | None
    active: float


@dataclass(frozen=True)
class _Codes:
    """dense: per side. kept: per side the flat positions of what is not 0; None where the codes are not sparse (relu)."""

    dense: tuple[Float[Tensor, "row latent"], ...]
    kept: tuple[Int[Tensor, " code"], ...] | None
    cut: float | None


@dataclass(frozen=True)
class _By:
    """Gradients on their way: by what the encoder gives [row, latent], its bias [latent], the decoder [latent, wide]."""

    pre: Tensor
    bias: Tensor
    decoder: Tensor


def loss_and_gradients(
    masters: Parameters,
    cast: Parameters,
    z: Float[Tensor, "row wide"],
    objective: Objective,
    dead: Int[Tensor, " dead"],
    guess: float = 0.0,
) -> Found:
    """Loss of normalised rows and its gradients by every parameter (in the products' dtype; biases in the masters').

    cast: `masters` in the dtype of the products. Sums are float32, or the masters' own dtype. dead: the latents that the
    auxiliary loss is for. guess: see `select`. What is selected is held fixed, as is the error that dead latents learn.
    """
    rows = z.shape[0]
    x = z.to(cast.encoder.dtype)
    weights = _weights(masters, objective)
    pre = torch.addmm(cast.encoder_bias, x, cast.encoder)
    codes = _codes(pre, weights, objective, rows * objective.k, guess)
    error = _decoded(codes, cast, masters.decoder_bias).sub_(z)
    reconstruction = _squares(error, objective.models) / rows
    gradient, delta = error * (2 / rows), 0.0
    if objective.delta:
        delta = _add_delta(gradient, codes, masters, z, objective)
    pull = gradient.to(x.dtype)
    by_pre = _by_pre(pre, codes, pull, cast, weights, objective)
    by = _By(by_pre, _by_bias(by_pre, codes, z.dtype), _by_decoder(codes, pull))
    l1 = _add_l1(by.decoder, codes, masters, weights, objective) if objective.kind == "relu" else 0.0
    aux = 0.0
    if objective.aux_alpha and dead.numel():
        aux = _add_aux(by, pre, error, cast, weights, objective, dead)
    total = float(reconstruction.sum()) + l1 + delta + aux
    return Found(
        Loss(total, tuple(reconstruction.tolist()), l1, delta, aux),
        Parameters(x.T @ by.pre, by.bias, by.decoder, gradient.sum(0)),
        *_activity(codes, rows, pre.shape[1]),
    )


def _weights(masters: Parameters, objective: Objective) -> Tensor | None:
    """None: all ones."""
    if objective.code_norm == "none":
        return None
    # Without a selection there are no sides to select for: the sum over models is all that an L1 term sees.
    norm = (
        "crosscoder"
        if objective.kind == "relu" and objective.code_norm == "decoupled"
        else objective.code_norm
    )
    return code_weights(masters.by_model(objective.models), norm)


def _codes(pre: Tensor, weights: Tensor | None, objective: Objective, count: int, guess: float) -> _Codes:
    if objective.kind == "relu":
        return _Codes((pre.clamp_min(0),), None, None)
    sides = 1 if weights is None else weights.shape[0]
    chosen = select(pre, weights, count * sides, guess)
    return _Codes(tuple(_scattered(pre, flat) for flat in chosen.kept), chosen.kept, chosen.cut)


def _scattered(values: Tensor, flat: Tensor) -> Tensor:
    """`values` at the flat positions, 0 elsewhere."""
    out = torch.zeros_like(values)
    out.view(-1)[flat] = values.view(-1)[flat]
    return out


def _parts(wide: Tensor, sides: int) -> tuple[Tensor, ...]:
    """The columns that each side writes: all of them for one side."""
    return wide.chunk(sides, dim=1)


def _decoded(codes: _Codes, cast: Parameters, bias: Tensor) -> Tensor:
    parts = _parts(cast.decoder, len(codes.dense))
    products = [f @ decoder for f, decoder in zip(codes.dense, parts, strict=True)]
    return (products[0] if len(products) == 1 else torch.cat(products, 1)).to(bias.dtype) + bias


def _squares(error: Tensor, models: int) -> Float[Tensor, " model"]:
    return error.square().sum(0).view(models, -1).sum(1)


def _add_delta(
    gradient: Tensor, codes: _Codes, masters: Parameters, z: Tensor, objective: Objective
) -> float:
    """Adds the Delta term's gradient by the reconstructions; returns the term.

    The difference of the two reconstructions comes from the difference of the decoders: two rounded ones subtracted would
    lose it where the models hardly differ. Where each model has codes of its own, it is a sum of two products instead.
    """
    rows, half = z.shape[0], z.shape[1] // 2
    base, tuned = objective.spread

    def difference(wide: Tensor) -> Tensor:
        return tuned * wide[..., half:] - base * wide[..., :half]

    if len(codes.dense) == 1:
        written = codes.dense[0] @ difference(masters.decoder).to(codes.dense[0].dtype)
    else:
        by_base, by_tuned = (f.to(z.dtype) for f in codes.dense)
        written = tuned * by_tuned @ masters.decoder[:, half:] - base * by_base @ masters.decoder[:, :half]
    error = written.to(z.dtype) + difference(masters.decoder_bias) - difference(z)
    gradient[:, :half].add_(error, alpha=-2 * objective.delta * base / rows)
    gradient[:, half:].add_(error, alpha=2 * objective.delta * tuned / rows)
    return objective.delta * float(error.square().sum()) / rows


def _by_pre(
    pre: Tensor, codes: _Codes, pull: Tensor, cast: Parameters, weights: Tensor | None, objective: Objective
) -> Tensor:
    """Gradient by what the encoder gives: 0 where no code was kept."""
    sides = len(codes.dense)
    by_codes = [
        part @ decoder.T
        for part, decoder in zip(_parts(pull, sides), _parts(cast.decoder, sides), strict=True)
    ]
    if codes.kept is None:
        penalty = objective.l1 / pre.shape[0]
        each = penalty if weights is None else (penalty * weights[0]).to(pre.dtype)
        return torch.where(pre > 0, by_codes[0].add_(each), 0.0)
    out = _scattered(by_codes[0], codes.kept[0])
    for by, flat in zip(by_codes[1:], codes.kept[1:], strict=True):
        out.view(-1)[flat] += by.view(-1)[flat]
    return out


def _by_bias(by_pre: Tensor, codes: _Codes, dtype: torch.dtype) -> Tensor:
    """Sums over rows, of the kept codes alone where they are few."""
    if codes.kept is None:
        return by_pre.sum(0, dtype=dtype)
    flat = codes.kept[0] if len(codes.kept) == 1 else torch.cat(codes.kept).unique()
    total = torch.zeros(by_pre.shape[1], dtype=dtype, device=by_pre.device)
    return total.index_add_(0, flat % by_pre.shape[1], by_pre.view(-1)[flat].to(dtype))


def _by_decoder(codes: _Codes, pull: Tensor) -> Tensor:
    parts = _parts(pull, len(codes.dense))
    products = [f.T @ part for f, part in zip(codes.dense, parts, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products, 1)


def _add_l1(
    by_decoder: Tensor, codes: _Codes, masters: Parameters, weights: Tensor | None, objective: Objective
) -> float:
    """Adds what the decoder's norms weigh in the L1 term; returns the term."""
    mass = codes.dense[0].sum(0, dtype=masters.decoder.dtype) * (objective.l1 / codes.dense[0].shape[0])
    if weights is None:
        return float(mass.sum())
    decoder = masters.by_model(objective.models)
    norms = decoder.norm(dim=2, keepdim=True)
    together = norms.norm(dim=0, keepdim=True)
    share = {"sae": 0.0, "mixed": 0.5}.get(objective.code_norm, 1.0)
    # A model that a latent does not write to has a norm of 0, and no say in the weight.
    slope = share / norms + (1 - share) / together
    by_weight = decoder * torch.where(norms > 0, slope, 0.0)
    wide = by_weight.transpose(0, 1).reshape(masters.decoder.shape)
    by_decoder.add_((mass[:, None] * wide).to(by_decoder.dtype))
    return float((mass * weights[0]).sum())


def _add_aux(
    to: _By,
    pre: Tensor,
    error: Tensor,
    cast: Parameters,
    weights: Tensor | None,
    objective: Objective,
    dead: Tensor,
) -> float:
    """Adds the gradients of the dead latents' own attempt at the error; returns the term, weighted."""
    rows, some = pre.shape[0], pre[:, dead]
    heard = None if weights is None else weights[:, dead].sum(0, keepdim=True)
    flat = select(some, heard, rows * objective.aux_k, 0.0).kept[0]
    codes, decoder = _scattered(some, flat), cast.decoder[dead]
    left = (codes @ decoder).to(error.dtype).add_(error)
    pull = (left * (2 * objective.aux_alpha / rows)).to(pre.dtype)
    to.decoder.index_add_(0, dead, codes.T @ pull)
    by_pre = _scattered(pull @ decoder.T, flat)
    to.pre.index_add_(1, dead, by_pre)
    to.bias.index_add_(0, dead, by_pre.sum(0, dtype=to.bias.dtype))
    return objective.aux_alpha * float(left.square().sum()) / rows


def _activity(codes: _Codes, rows: int, latents: int) -> tuple[Tensor, float | None, float]:
    """fired, cut, active."""
    if codes.kept is None:
        on = codes.dense[0] > 0
        return on.any(0), None, float(on.sum()) / rows
    fired = torch.zeros(latents, dtype=torch.bool, device=codes.dense[0].device)
    for flat in codes.kept:
        fired[flat % latents] = True
    return fired, codes.cut, sum(flat.numel() for flat in codes.kept) / rows / len(codes.kept)
