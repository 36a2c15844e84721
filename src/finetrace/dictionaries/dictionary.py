"""A trained dictionary: how hidden states are read as few latents, and what each latent writes back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.files import write_bytes

__all__ = ["CODE_NORMS", "KINDS", "CodeNorm", "Dictionary", "Kind", "code_weights", "told_of"]

Kind = Literal["batch_topk", "relu"]
CodeNorm = Literal["crosscoder", "sae", "mixed", "decoupled", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CODE_NORMS: tuple[CodeNorm, ...] = get_args(CodeNorm)
SHARED, BASE_ONLY, TUNED_ONLY = 0, 1, 2

_FORMAT = "finetrace dictionary 1"
_AXES = {
    "encoder": ("model", "d", "latent"),
    "encoder_bias": ("latent",),
    "decoder": ("model", "latent", "d"),
    "decoder_bias": ("model", "d"),
    "mean": ("model", "d"),
    "scale": ("model",),
    "owner": ("latent",),
}
_THRESHOLDS = "thresholds"
_HEADER: dict[str, Any] = {"threshold": int | float, "kind": str, "code_norm": str, "row_limit": int | None}
_TAGGED, _NEAR = 0.1, 0.1


def code_weights(decoder: Float[Tensor, "model latent d"], norm: CodeNorm) -> Float[Tensor, "side latent"]:
    """What a code is multiplied by before codes are compared: `side` is 1, or the models for "decoupled".

    crosscoder: the sum of the latent's decoder norms over the models; sae: the norm of all its decoders as one vector;
    mixed: half of each; decoupled: each model's own norm; none: 1.
    """
    norms = decoder.norm(dim=2)
    match norm:
        case "crosscoder":
            return norms.sum(0, keepdim=True)
        case "sae":
            return norms.norm(dim=0, keepdim=True)
        case "mixed":
            return 0.5 * (norms.sum(0, keepdim=True) + norms.norm(dim=0, keepdim=True))
        case "decoupled":
            return norms
        case _:
            return torch.ones_like(norms[:1])


@dataclass(frozen=True)
class Dictionary:
    """An SAE (one model) or a crosscoder (base, tuned: in this order). Tensors are float32, contiguous, of one device.

    A row is normalised, (x - mean) * scale, then pre = sum over models of normalised @ encoder + encoder_bias, a code is
    max(pre, 0), and codes whose weighted value (see `code_weights`) is not above `threshold` are 0. What is decoded,
    codes @ decoder + decoder_bias, is normalised too and is turned back by `decode`.

    decoder: rows of norm 1 for an SAE, raw for a crosscoder. kind: how it was trained; "relu" has a threshold of 0.
    owner: 0 for a latent that writes to every model, 1 base only, 2 tuned only (the Delta form's own latents).
    "decoupled": a code is kept for each model by itself, so `decode` leaves it out of the models where it is too weak.

    Ours have neither of the last two; what was trained elsewhere may, and its decoder's rows are as long as they were
    there. thresholds: of each latent, in place of `threshold` (a JumpReLU SAE). row_limit: how many codes a row keeps at
    most, the strongest (the k of a TopK SAE).
    """

    encoder: Float[Tensor, "model d latent"]
    encoder_bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "model latent d"]
    decoder_bias: Float[Tensor, "model d"]
    mean: Float[Tensor, "model d"]
    scale: Float[Tensor, " model"]
    owner: Int8[Tensor, " latent"]
    threshold: float
    kind: Kind
    code_norm: CodeNorm = "none"
    thresholds: Float[Tensor, " latent"] | None = None
    row_limit: int | None = None

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise BadInput("This is not a dictionary: " + "; ".join(problems) + ".")

    @property
    def models(self) -> int:
        return self.encoder.shape[0]

    @property
    def d(self) -> int:
        return self.encoder.shape[1]

    @property
    def latents(self) -> int:
        return self.encoder.shape[2]

    def normalise(self, x: Float[Tensor, "row model d"]) -> Float[Tensor, "row model d"]:
        self._check(x)
        return (x.float() - self.mean) * self.scale[:, None]

    def codes(self, x: Float[Tensor, "row model d"]) -> Float[Tensor, "row latent"]:
        """How strongly each row holds each latent, 0 where it does not; the units are of the normalised space."""
        z = self.normalise(x)
        weights = code_weights(self.decoder, self.code_norm)
        pre = torch.addmm(self.encoder_bias, z.flatten(1), self.encoder.flatten(0, 1))
        weighted = pre * weights.amax(0)
        kept = weighted > (self.threshold if self.thresholds is None else self.thresholds)
        if self.row_limit is not None and self.row_limit < self.latents:
            strongest = weighted.topk(self.row_limit, dim=1, sorted=False).indices
            kept &= torch.zeros_like(kept).scatter_(1, strongest, True)
        return torch.where(kept, pre, 0.0)

    def decode(self, codes: Float[Tensor, "row latent"]) -> Float[Tensor, "row model d"]:
        """The rows that codes stand for, in the space of the hidden states."""
        if codes.ndim != 2 or codes.shape[1] != self.latents:
            raise BadInput(
                f"Codes of {self.latents} latents are [row, {self.latents}], not {[*codes.shape]}."
            )
        parts = [codes] * self.models
        if self.code_norm == "decoupled":
            weights = code_weights(self.decoder, self.code_norm)
            parts = [torch.where(codes * own > self.threshold, codes, 0.0) for own in weights]
        written = [part @ decoder for part, decoder in zip(parts, self.decoder, strict=True)]
        return (torch.stack(written, 1) + self.decoder_bias) / self.scale[:, None] + self.mean

    def reconstruct(self, x: Float[Tensor, "row model d"]) -> Float[Tensor, "row model d"]:
        return self.decode(self.codes(x))

    def directions(self) -> Float[Tensor, "model latent d"]:
        """The decoder in the space of the hidden states: what a code of 1 adds to them."""
        return self.decoder / self.scale[:, None, None]

    def norm_difference(self) -> Float[Tensor, " latent"]:
        """½(1 + (‖d_base‖ - ‖d_tuned‖) / max) of the normalised decoders: 0 tuned only, ½ shared, 1 base only.

        NaN for a latent that writes nowhere. Needs two models.
        """
        if self.models != 2:
            raise BadInput("Decoder norms are compared between two models: this dictionary is of one.")
        base, tuned = self.decoder.norm(dim=2)
        return 0.5 * (1 + (base - tuned) / torch.maximum(base, tuned))

    def tags(self) -> list[str]:
        """Per latent, by `norm_difference`: "tuned-only" below 0.1, "base-only" above 0.9, "shared" within 0.1 of 0.5, else
        "other"."""
        return [_tag(value) for value in self.norm_difference().tolist()]

    def to(self, device: torch.device | str) -> Dictionary:
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def save(self, path: Path, about: Mapping[str, str | int] | None = None) -> None:
        """One safetensors file: the tensors, and a JSON header with the rest and a hash of the tensors.

        about: what it was trained on, for `told_of`: "reads" and "layer".
        """
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        header = {
            "format": _FORMAT,
            "threshold": self.threshold,
            "kind": self.kind,
            "code_norm": self.code_norm,
            "row_limit": self.row_limit,
            "hash": _hash(tensors),
            "about": dict(about or {}),
        }
        write_bytes(path, save(tensors, {"dictionary": json.dumps(header, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> Dictionary:
        """Refuses what is not ours, was cut short, or has changed since it was written."""
        try:
            with safe_open(path, framework="pt") as opened:
                header = json.loads((opened.metadata() or {}).get("dictionary", "{}"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            raise BadInput(f"There is no dictionary at {path}.") from None
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise BadInput(f"{path} is cut short, corrupt or not a dictionary: {error}.") from None
        format_ = header.get("format") if isinstance(header, dict) else None
        if format_ != _FORMAT:
            raise BadInput(
                f"{path} is not a dictionary of finetrace's ('{format_}', not '{_FORMAT}'): "
                "other tools' files have to be imported."
            )
        told: dict[str, Any] = {name: header.get(name) for name in _HEADER}
        if not _is_whole(tensors, told) or header.get("hash") != _hash(tensors):
            raise BadInput(f"{path} does not hold what was written to it: copy it again, or train it again.")
        return cls(**tensors, **told)

    def _tensors(self) -> dict[str, Tensor]:
        own = {} if self.thresholds is None else {_THRESHOLDS: self.thresholds}
        return {name: getattr(self, name) for name in _AXES} | own

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.models, self.d):
            raise BadInput(
                f"This dictionary reads [row, {self.models}, {self.d}] (row, model, d), not {[*x.shape]}: is it of "
                "another layer, another model, or of one model where two are given?"
            )


def told_of(path: Path) -> Mapping[str, Any]:
    """What a file that `Dictionary.load` takes says of what it was trained on; empty where it says nothing."""
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["dictionary"])
    about = header.get("about")
    return about if isinstance(about, dict) else {}


def _problems(found: Dictionary) -> Iterator[str]:
    if found.encoder.ndim != 3:
        yield f"the encoder is [model, d, latent], not {[*found.encoder.shape]}"
        return
    sizes = dict(zip(("model", "d", "latent"), found.encoder.shape, strict=True))
    for name, axes in _AXES.items():
        tensor, wanted = getattr(found, name), [sizes[axis] for axis in axes]
        kind = torch.int8 if name == "owner" else torch.float32
        if [*tensor.shape] != wanted or tensor.dtype != kind:
            yield f"{name} is {[*tensor.shape]} {tensor.dtype}, not {wanted} {kind}"
        elif kind == torch.float32 and not bool(torch.isfinite(tensor).all()):
            yield f"{name} holds values that are not finite"
    if sizes["model"] not in (1, 2):
        yield f"it is of {sizes['model']} models, not 1 or 2"
    if found.kind not in KINDS:
        yield f"its kind is '{found.kind}', not one of {', '.join(KINDS)}"
    if found.code_norm not in CODE_NORMS:
        yield f"its code norm is '{found.code_norm}', not one of {', '.join(CODE_NORMS)}"
    if not math.isfinite(found.threshold) or found.threshold < 0:
        yield f"its threshold is {found.threshold}, not 0 or more"
    if found.row_limit is not None and found.row_limit < 1:
        yield f"a row keeps {found.row_limit} codes, not 1 or more"
    if found.thresholds is not None:
        yield from _threshold_problems(found, found.thresholds)


def _threshold_problems(found: Dictionary, own: Float[Tensor, " latent"]) -> Iterator[str]:
    if own.dtype != torch.float32 or [*own.shape] != [found.encoder.shape[2]]:
        yield f"its thresholds are {[*own.shape]} {own.dtype}, not one of torch.float32 a latent"
    elif not bool((torch.isfinite(own) & (own >= 0)).all()):
        yield "its thresholds hold values that are not 0 or more"
    if found.threshold or found.code_norm == "decoupled":
        yield "it has thresholds of its latents, and another threshold or one of each model beside them"


def _tag(value: float) -> str:
    if value < _TAGGED:
        return "tuned-only"
    if value > 1 - _TAGGED:
        return "base-only"
    return "shared" if abs(value - 0.5) < _NEAR else "other"


def _is_whole(tensors: dict[str, Tensor], told: dict[str, Any]) -> bool:
    """Whether a file has what one of ours has, by name and type."""
    typed = all(isinstance(value, _HEADER[name]) for name, value in told.items())
    kinds = {tensor.dtype for name, tensor in tensors.items() if name != "owner"}
    return typed and {*tensors, _THRESHOLDS} == {*_AXES, _THRESHOLDS} and kinds == {torch.float32}


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
