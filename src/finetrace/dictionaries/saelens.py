"""SAELens's folders: cfg.json and sae_weights.safetensors, read and written.

Source: SAELens 6.54.12 (`sae_lens/saes/{sae,standard_sae,jumprelu_sae,topk_sae,batchtopk_sae}.py`, and
`loading/pretrained_sae_loaders.py` for what configurations before 6.0 meant). W_enc [d_in, d_sae], b_enc [d_sae],
W_dec [d_sae, d_in], b_dec [d_in], and threshold [d_sae] for a JumpReLU. A BatchTopK SAE is kept there as a JumpReLU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import BadInput, unknown
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.folding import Folded, by_norm, folded, level
from finetrace.dictionaries.foreign import number, taken

__all__ = ["CONFIG", "FORMAT", "VERSION", "WEIGHTS", "read", "site", "write"]

FORMAT = "saelens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The version whose layout is read and written."""

_AXES = {"W_enc": ("d", "latent"), "b_enc": ("latent",), "W_dec": ("latent", "d"), "b_dec": ("d",)}
_SCALED, _FACTOR = "expected_average_only_in", "scaling_factor"
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_READ = ("standard", "jumprelu", "topk", *_BATCH)
# What SAELens takes a shorter decoder row for where it divides by norms.
_SHORTEST = 1e-8
_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def read(config: Mapping[str, Any], found: dict[str, Tensor], where: str, scale: float | None) -> Dictionary:
    """The dictionary of a configuration and its tensors; codes are those that SAELens gives.

    scale: what hidden states are multiplied by where the configuration says "expected_average_only_in": SAELens keeps that
    factor elsewhere, in its list of releases, unless it was folded in.
    """
    cfg = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    architecture = _architecture(cfg, where)
    factor = _normalised(cfg, scale, where)
    found = dict(found)
    axes, extra = dict(_AXES), _thresholds(architecture, found, where)
    axes |= extra
    if _FACTOR in found:
        axes[_FACTOR] = ("latent",)
    sizes = {"d": number(cfg, "d_in", where), "latent": number(cfg, "d_sae", where)}
    tensors = taken(found, axes, where, sizes)
    encoder, bias, decoder = tensors["W_enc"], tensors["b_enc"], tensors["W_dec"]
    decoder = decoder * _finetuned(cfg, tensors.get(_FACTOR), where)
    if architecture in ("topk", *_BATCH) and _flag(cfg, "rescale_acts_by_decoder_norm", False, where):
        encoder, bias, decoder = by_norm(encoder, bias, decoder, _SHORTEST)
    threshold, thresholds = _cuts(tensors)
    centred = _flag(cfg, "apply_b_dec_to_input", True, where)
    none = torch.zeros_like(tensors["b_dec"])
    return Dictionary(
        encoder=encoder[None],
        encoder_bias=bias,
        decoder=decoder[None].contiguous(),
        decoder_bias=(none if centred else tensors["b_dec"])[None],
        mean=(tensors["b_dec"] / factor if centred else none)[None],
        scale=torch.tensor([factor]),
        owner=torch.zeros(len(bias), dtype=torch.int8),
        threshold=threshold,
        kind="relu" if architecture == "standard" else "batch_topk",
        thresholds=thresholds,
        row_limit=_limit(cfg, where) if architecture == "topk" else None,
    )


def site(config: Mapping[str, Any]) -> tuple[str | None, str | None, int | None]:
    """Which model it was trained on, at which hook, and the block whose output that is (None: none, or not known)."""
    cfg = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    known = cfg["metadata"] if isinstance(cfg.get("metadata"), dict) else cfg
    model, hook = known.get("model_name"), known.get("hook_name")
    named = _RESIDUAL.fullmatch(hook) if isinstance(hook, str) else None
    layer = None if named is None else int(named[1]) - (named[2] == "pre")
    return (
        model if isinstance(model, str) else None,
        hook if isinstance(hook, str) else None,
        None if layer is None or layer < 0 else layer,
    )


def write(dictionary: Dictionary, about: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors; normalisation is folded into the weights. Raises where SAELens has no place for
    something that moves a code."""
    if dictionary.models != 1:
        raise BadInput(
            "A crosscoder reads two models at once, and a SAELens folder holds one model's SAE: export it as "
            "dictionary_learning."
        )
    plain = folded(dictionary)
    architecture = _written(dictionary, plain)
    config: dict[str, Any] = {
        "d_in": dictionary.d,
        "d_sae": dictionary.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": VERSION, "sae_lens_training_version": None, **about},
        "architecture": architecture,
    }
    tensors = {
        "W_enc": plain.encoder,
        "b_enc": plain.bias,
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
    }
    if architecture == "topk":
        config |= {"k": dictionary.row_limit, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = plain.thresholds
    return config, tensors


def _written(dictionary: Dictionary, plain: Folded) -> str:
    some = bool((plain.thresholds > 0).any())
    if dictionary.row_limit is None:
        return "jumprelu" if some else "standard"
    if some or dictionary.code_norm != "none":
        raise BadInput(
            "A SAELens TopK SAE has no thresholds and weighs no codes; this dictionary keeps "
            f"{dictionary.row_limit} codes a row and does one of them: keep it in finetrace's format."
        )
    return "topk"


def _architecture(cfg: Mapping[str, Any], where: str) -> str:
    found, activation = cfg.get("architecture", "standard"), cfg.get("activation_fn", "relu")
    if not isinstance(found, str) or found not in _READ:
        raise unknown(f"SAELens architecture that is read ({where})", str(found), _READ)
    if activation == "topk" and found in ("standard", "topk"):
        return "topk"
    if activation not in ("relu", None):
        raise BadInput(f"{where} uses the activation '{activation}'; relu and topk are read.")
    reshaped = cfg.get("reshape_activations", "hook_z" if "hook_z" in str(cfg.get("hook_name")) else "none")
    if reshaped not in ("none", None):
        raise BadInput(
            f"{where} reads the heads of an attention layer ('{reshaped}'), not a block's hidden states: take an SAE of "
            "the residual stream."
        )
    return found


def _normalised(cfg: Mapping[str, Any], scale: float | None, where: str) -> float:
    """What hidden states are multiplied by."""
    said = cfg.get("normalize_activations")
    said = (
        {True: _SCALED, False: "none", None: "none"}.get(said, said) if said in (True, False, None) else said
    )
    if said == "none":
        if scale is not None:
            raise BadInput(f"{where} reads hidden states as they are: leave the scale away.")
        return 1.0
    if said != _SCALED:
        raise BadInput(
            f"{where} normalises every hidden state by itself ('{said}'), so that codes alone do not say what they stand "
            "for: this is not supported; take an SAE whose normalize_activations is 'none'."
        )
    if scale is None or not 0 < scale < float("inf"):
        raise BadInput(
            f"{where} was trained on hidden states times a factor that is not in its folder ({_SCALED}): give it as the "
            "scale (SAELens's list of releases has it as norm_scaling_factor), or fold it in with SAELens and save again."
        )
    return float(scale)


def _thresholds(architecture: str, found: dict[str, Tensor], where: str) -> dict[str, tuple[str, ...]]:
    """The axes of what holds the thresholds; a logarithm of them is taken back."""
    if architecture in _BATCH:
        return {"topk_threshold": ()}
    if architecture != "jumprelu":
        return {}
    if "log_threshold" in found:
        if "threshold" in found:
            raise BadInput(f"{where} holds both threshold and log_threshold.")
        found["threshold"] = found.pop("log_threshold").float().exp()
    return {"threshold": ("latent",)}


def _cuts(tensors: Mapping[str, Tensor]) -> tuple[float, Tensor | None]:
    """One threshold, or one of each latent; SAELens takes those below 0 as 0."""
    if "topk_threshold" in tensors:
        return max(0.0, float(tensors["topk_threshold"])), None
    if "threshold" not in tensors:
        return 0.0, None
    own = tensors["threshold"].clamp(min=0)
    same = level(own) if float(own.min()) == float(own.max()) else None
    return (0.0, own) if same is None else (float(own[0]), None)


def _finetuned(cfg: Mapping[str, Any], factor: Tensor | None, where: str) -> Tensor:
    """What decoder rows are multiplied by, [latent, 1]: SAEs before 6.0 could be tuned that way after training."""
    if factor is None or bool((factor == 1).all()):
        return torch.ones(1, 1)
    if not cfg.get("finetuning_scaling_factor"):
        raise BadInput(
            f"{where} holds a {_FACTOR} that is not 1 and says that it has none (finetuning_scaling_factor): one of the "
            "two is wrong."
        )
    return factor[:, None]


def _flag(cfg: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = cfg.get(name, default)
    if not isinstance(value, bool):
        raise BadInput(f"{where}: {name} is {value!r}, not true or false.")
    return value


def _limit(cfg: Mapping[str, Any], where: str) -> int:
    kwargs = cfg.get("activation_fn_kwargs")
    known = number(cfg, "k", where)
    if known is None and isinstance(kwargs, dict):
        known = number(kwargs, "k", where)
    if known is None:
        raise BadInput(f"{where} is a TopK SAE and does not say how many codes a row keeps (k).")
    return known
