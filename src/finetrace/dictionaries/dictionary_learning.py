"""dictionary_learning's folders: config.json beside ae.safetensors or model.safetensors, read and written.

Source: saprmarks/dictionary_learning 0.1.0 (`dictionary.py`, `trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py`,
`utils.load_dictionary`) for SAEs, which it keeps as pickles (ae.pt): the same names in a safetensors file are read here;
jkminder/dictionary_learning (the fork behind arXiv 2504.02922) for crosscoders, with its code normalisation and its
activation normaliser. encoder.weight [latent, d] and decoder.weight [d, latent] of an SAE are PyTorch's linear layers;
a crosscoder's are [model, d, latent] and [model, latent, d], the base first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import BadInput, unknown
from finetrace.dictionaries.dictionary import CodeNorm, Dictionary, code_weights
from finetrace.dictionaries.folding import Folded, folded, level
from finetrace.dictionaries.foreign import number, taken, whole

__all__ = ["CONFIG", "CROSSCODER_WEIGHTS", "FORMAT", "WEIGHTS", "read", "site", "write"]

FORMAT = "dictionary_learning"
CONFIG, WEIGHTS, CROSSCODER_WEIGHTS = "config.json", "ae.safetensors", "model.safetensors"

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]
_LINEAR = {
    "encoder.weight": ("latent", "d"),
    "encoder.bias": ("latent",),
    "decoder.weight": ("d", "latent"),
}
_MATRICES = {"W_enc": ("d", "latent"), "b_enc": ("latent",), "W_dec": ("latent", "d"), "b_dec": ("d",)}
_CROSS = {
    "encoder.weight": ("layer", "d", "latent"),
    "encoder.bias": ("latent",),
    "decoder.weight": ("model", "latent", "d"),
    "decoder.bias": ("model", "d"),
}
# The order of the fork's CodeNormalization, which counts from 1.
_NORMS: tuple[CodeNorm, ...] = ("crosscoder", "sae", "mixed", "none", "decoupled")
_MEAN, _STD, _SCALE, _RMS = "activation_mean", "activation_std", "activation_global_scale", "target_rms"
_ALPHAS = {"code_normalization_alpha_sae": 1.0, "code_normalization_alpha_cc": 0.1}
_COMPILED = "_orig_mod."


def read(config: Config, found: Tensors, where: str) -> Dictionary:
    """The dictionary of a configuration and its tensors; codes are those that the class gives at inference."""
    said = config.get("trainer", config)
    if not isinstance(said, dict):
        raise BadInput(f"{where}: 'trainer' is no object.")
    found = {name.removeprefix(_COMPILED): tensor for name, tensor in found.items()}
    kind = str(said.get("dict_class") or _guessed(found, where))
    if kind not in _READ:
        raise unknown(f"dictionary_learning class that is read ({where})", kind, _READ)
    return _READ[kind](said, found, where)


def site(config: Config) -> tuple[str | None, str | None, int | None]:
    """Which model it was trained on, where, and the layer, as the configuration says it: its layer is the block whose
    output was read, unless the place says otherwise."""
    said = config.get("trainer", config)
    if not isinstance(said, dict):
        return None, None, None
    model, place, layer = said.get("lm_name"), said.get("submodule_name"), said.get("layer")
    return (
        model if isinstance(model, str) else None,
        place if isinstance(place, str) else None,
        layer if isinstance(layer, int) and not isinstance(layer, bool) else None,
    )


def _guessed(found: Tensors, where: str) -> str:
    """The class by its tensors, where only one has them: configurations of hub models may not name it."""
    weight = found.get("encoder.weight")
    if weight is not None and weight.ndim == 3:
        return "BatchTopKCrossCoder" if "threshold" in found else "CrossCoder"
    if "bias" in found and "b_dec" not in found:
        return "AutoEncoder"
    if "decoder.bias" in found:
        return "AutoEncoderNew"
    if _SCALE in found:
        return "BatchTopKSAE"
    raise BadInput(
        f"{where} does not name its class (trainer.dict_class), and its tensors ({', '.join(sorted(found)) or 'none'}) fit "
        "several: add it to the configuration."
    )


def _sizes(said: Config, where: str) -> dict[str, int | None]:
    return {"d": number(said, "activation_dim", where), "latent": number(said, "dict_size", where)}


def _autoencoder(said: Config, found: Tensors, where: str) -> Dictionary:
    got = taken(found, _LINEAR | {"bias": ("d",)}, where, _sizes(said, where))
    return _sae(got["encoder.weight"].T, got["encoder.bias"], got["decoder.weight"].T, centre=got["bias"])


def _autoencoder_new(said: Config, found: Tensors, where: str) -> Dictionary:
    got = taken(found, _LINEAR | {"decoder.bias": ("d",)}, where, _sizes(said, where))
    return _sae(
        got["encoder.weight"].T, got["encoder.bias"], got["decoder.weight"].T, added=got["decoder.bias"]
    )


def _top_k(said: Config, found: Tensors, where: str) -> Dictionary:
    """Its encode keeps the k strongest codes of a row; its threshold is used on request alone."""
    k = whole(found, "k", where) or number(said, "k", where)
    if k is None or k < 1:
        raise BadInput(f"{where} is a TopK SAE and does not say how many codes a row keeps (k).")
    found.pop("threshold", None)
    got = taken(found, _LINEAR | {"b_dec": ("d",)}, where, _sizes(said, where))
    encoder, decoder = got["encoder.weight"].T, got["decoder.weight"].T
    return _sae(encoder, got["encoder.bias"], decoder, centre=got["b_dec"], threshold=0.0, limit=k)


def _batch_top_k(said: Config, found: Tensors, where: str) -> Dictionary:
    whole(found, "k", where)
    mean, scale = _normaliser(found, where, ())
    got = taken(found, _LINEAR | {"b_dec": ("d",), "threshold": ()}, where, _sizes(said, where))
    shift = got["b_dec"] / scale if mean is None else mean + got["b_dec"] / scale
    return _sae(
        got["encoder.weight"].T,
        got["encoder.bias"],
        got["decoder.weight"].T,
        centre=shift,
        threshold=_learnt(float(got["threshold"]), where),
        scale=float(scale),
    )


def _matryoshka(said: Config, found: Tensors, where: str) -> Dictionary:
    whole(found, "k", where)
    found.pop("group_sizes", None)
    got = taken(found, _MATRICES | {"threshold": ()}, where, _sizes(said, where))
    threshold = _learnt(float(got["threshold"]), where)
    return _sae(got["W_enc"], got["b_enc"], got["W_dec"], centre=got["b_dec"], threshold=threshold)


def _jump_relu(said: Config, found: Tensors, where: str) -> Dictionary:
    """As in 0.1.0; the fork, and versions before, multiply its codes by the norms of the decoder rows."""
    got = taken(found, _MATRICES | {"threshold": ("latent",)}, where, _sizes(said, where))
    own = got["threshold"].clamp(min=0)
    return _sae(got["W_enc"], got["b_enc"], got["W_dec"], added=got["b_dec"], threshold=0.0, thresholds=own)


def _sae(
    encoder: Tensor,
    bias: Tensor,
    decoder: Tensor,
    *,
    centre: Tensor | None = None,
    added: Tensor | None = None,
    threshold: float | None = None,
    thresholds: Tensor | None = None,
    limit: int | None = None,
    scale: float = 1.0,
) -> Dictionary:
    """centre: taken from what is read and added to what is written; added: to what is written only. threshold: None for
    a plain ReLU."""
    none = torch.zeros(1, encoder.shape[0])
    return Dictionary(
        encoder=encoder[None].contiguous(),
        encoder_bias=bias,
        decoder=decoder[None].contiguous(),
        decoder_bias=none if added is None else added[None],
        mean=none if centre is None else centre[None],
        scale=torch.tensor([scale]),
        owner=torch.zeros(len(bias), dtype=torch.int8),
        threshold=threshold or 0.0,
        kind="relu" if threshold is None else "batch_topk",
        thresholds=thresholds,
        row_limit=limit,
    )


def _relu_crosscoder(said: Config, found: Tensors, where: str) -> Dictionary:
    return _crosscoder(said, found, where, None)


def _batch_top_k_crosscoder(said: Config, found: Tensors, where: str) -> Dictionary:
    whole(found, "k", where)
    if "threshold" not in found:
        raise BadInput(f"{where} lacks threshold, without which a BatchTopK crosscoder has no codes.")
    own = found.pop("threshold").float().flatten().tolist()
    if not own or max(own) != min(own):
        raise BadInput(
            f"{where} has another threshold for each model ({own}): finetrace's dictionaries have one for both."
        )
    return _crosscoder(said, found, where, _learnt(own[0], where))


def _crosscoder(said: Config, found: Tensors, where: str, threshold: float | None) -> Dictionary:
    norm = _code_norm(said, whole(found, "code_normalization_id", where), where)
    models = found["decoder.weight"].shape[:1] if "decoder.weight" in found else ()
    mean, scale = _normaliser(found, where, tuple(models))
    got = taken(found, _CROSS, where, _sizes(said, where))
    decoder = got["decoder.weight"]
    if decoder.shape[0] != 2:
        raise BadInput(
            f"{where} is a crosscoder of {decoder.shape[0]} models or layers: finetrace compares two models."
        )
    alphas = [_alpha(said, name, default, where) for name, default in _ALPHAS.items()]
    cut, thresholds, norm = _weighed(decoder, norm, threshold or 0.0, alphas)
    silent = decoder.abs().amax(2) == 0
    return Dictionary(
        encoder=_encoder(said, got["encoder.weight"], where),
        encoder_bias=got["encoder.bias"],
        decoder=decoder,
        decoder_bias=got["decoder.bias"],
        mean=torch.zeros_like(got["decoder.bias"]) if mean is None else mean,
        scale=scale.expand(2).clone(),
        # A latent that writes to one model alone is that model's own.
        owner=(silent[1] & ~silent[0]).to(torch.int8) + 2 * (silent[0] & ~silent[1]).to(torch.int8),
        threshold=cut,
        kind="relu" if threshold is None else "batch_topk",
        code_norm=norm,
        thresholds=thresholds,
    )


def _code_norm(said: Config, number_: int | None, where: str) -> CodeNorm:
    """By its number, else by its name; the fork takes "crosscoder" where neither stands."""
    if number_ is not None:
        if not 1 <= number_ <= len(_NORMS):
            raise BadInput(f"{where}: code_normalization_id is {number_}; the fork knows 1 to {len(_NORMS)}.")
        return _NORMS[number_ - 1]
    name = str(said.get("code_normalization") or "crosscoder").lower()
    if name not in _NORMS:
        raise unknown(f"code normalisation ({where})", name, _NORMS)
    return next(norm for norm in _NORMS if norm == name)


def _alpha(said: Config, name: str, default: float, where: str) -> float:
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise BadInput(f"{where}: {name} is {value!r}, not a number of 0 or more.")
    return float(value)


def _weighed(
    decoder: Tensor, norm: CodeNorm, threshold: float, alphas: list[float]
) -> tuple[float, Tensor | None, CodeNorm]:
    """The threshold, or one a latent, and our code norm. The fork's "mixed" is alphas[0] x "sae" + alphas[1] x
    "crosscoder", ours half of each: another mixture is turned into thresholds of the latents."""
    if norm != "mixed" or threshold == 0:
        return threshold, None, norm
    if alphas[0] == alphas[1] > 0:
        return threshold / (2 * alphas[0]), None, norm
    mixed = alphas[0] * code_weights(decoder, "sae")[0] + alphas[1] * code_weights(decoder, "crosscoder")[0]
    largest = torch.finfo(torch.float32).max
    return 0.0, torch.where(mixed > 0, threshold / mixed, largest).clamp(max=largest), "none"


def _encoder(said: Config, encoder: Tensor, where: str) -> Tensor:
    """[2, d, latent]: a crosscoder may read one of the two models only."""
    read_ = said.get("encoder_layers", said.get("encoder_layers_indices"))
    if read_ is None:
        read_ = list(range(encoder.shape[0]))
    if read_ not in ([0], [1], [0, 1], [1, 0]):
        raise BadInput(f"{where} reads the models {read_}; there are 0 (the base) and 1.")
    if len(read_) != encoder.shape[0]:
        raise BadInput(
            f"{where} says that it reads the models {read_} and has {encoder.shape[0]} encoders for them."
        )
    whole_ = torch.zeros(2, *encoder.shape[1:])
    whole_[read_] = encoder
    return whole_


def _normaliser(found: Tensors, where: str, models: tuple[int, ...]) -> tuple[Tensor | None, Tensor]:
    """The fork's activation normaliser, taken out of `found`: mean (None: it has none) and scale. Its mean is NaN where it
    was not used."""
    there = [name for name in (_MEAN, _STD, _SCALE, _RMS) if name in found]
    if not there:
        return None, torch.ones(models)
    if len(there) < 4:
        raise BadInput(
            f"{where} holds {', '.join(there)} of an activation normaliser and not the rest of it."
        )
    parts = {name: found.pop(name).float() for name in there}
    if bool(parts[_MEAN].isnan().any()) or bool(parts[_STD].isnan().any()):
        return None, torch.ones(models)
    if bool((parts[_SCALE] <= 0).any()):
        raise BadInput(f"{where}: {_SCALE} is {parts[_SCALE].tolist()}, not above 0.")
    names = ("model",) * len(models)
    sizes: dict[str, int | None] = {"model": models[0]} if models else {}
    checked = taken(
        {_MEAN: parts[_MEAN], _SCALE: parts[_SCALE]}, {_MEAN: (*names, "d"), _SCALE: names}, where, sizes
    )
    return checked[_MEAN], checked[_SCALE]


def _learnt(threshold: float, where: str) -> float:
    if not 0 <= threshold < float("inf"):
        raise BadInput(
            f"{where} has not learnt its threshold (it is {threshold:g}): training stopped before it was, and which codes "
            "count is not said."
        )
    return threshold


_READ: dict[str, Callable[[Config, Tensors, str], Dictionary]] = {
    "AutoEncoder": _autoencoder,
    "AutoEncoderNew": _autoencoder_new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
    "CrossCoder": _relu_crosscoder,
    "BatchTopKCrossCoder": _batch_top_k_crosscoder,
}


def write(
    dictionary: Dictionary, about: Mapping[str, str], k: int | None = None
) -> tuple[dict[str, Any], Tensors, str]:
    """The configuration, the tensors, and the name of their file.

    An SAE has saprmarks' names and form of configuration, with normalisation folded into the weights; a crosscoder has the
    fork's, normaliser and all, and is opened there with `from_pretrained(FOLDER, from_hub=True)`. k: the codes a row that a
    BatchTopK one was trained with; its class wants to know, and codes at inference do not depend on it.
    """
    if dictionary.models == 2:
        return (*_crosscoder_out(dictionary, about, k), CROSSCODER_WEIGHTS)
    return (*_sae_out(dictionary, about, k), WEIGHTS)


def _sae_out(
    dictionary: Dictionary, about: Mapping[str, str], k: int | None
) -> tuple[dict[str, Any], Tensors]:
    plain, limit = folded(dictionary), dictionary.row_limit
    threshold = level(plain.thresholds)
    if limit is not None and (threshold != 0 or dictionary.code_norm != "none"):
        raise BadInput(
            "dictionary_learning's TopK SAE has no thresholds and weighs no codes; this dictionary keeps "
            f"{limit} codes a row and does one of them: keep it in finetrace's format."
        )
    said: dict[str, Any] = {"activation_dim": dictionary.d, "dict_size": dictionary.latents}
    if threshold is None:
        said["dict_class"], tensors = "JumpReluAutoEncoder", _jump_relu_out(plain)
        return {"trainer": said, "buffer": {}, "about": dict(about)}, tensors
    tensors = {
        "encoder.weight": plain.encoder.T.contiguous(),
        "encoder.bias": plain.bias,
        "decoder.weight": plain.decoder.T.contiguous(),
    }
    if limit is None and threshold == 0:
        said["dict_class"] = "AutoEncoder"
        tensors["bias"] = plain.centre
    else:
        said |= (
            {"dict_class": "BatchTopKSAE", "k": _k(k)}
            if limit is None
            else {"dict_class": "AutoEncoderTopK", "k": limit}
        )
        tensors |= {"b_dec": plain.centre, "k": torch.tensor(said["k"], dtype=torch.int32)}
        tensors["threshold"] = torch.tensor(threshold if limit is None else -1.0)
    return {"trainer": said, "buffer": {}, "about": dict(about)}, tensors


def _jump_relu_out(plain: Folded) -> Tensors:
    """Its class takes nothing from what it reads, so the centre goes into the encoder's bias."""
    shifted = plain.bias.double() - plain.centre.double() @ plain.encoder.double()
    return {
        "W_enc": plain.encoder,
        "b_enc": shifted.float(),
        "W_dec": plain.decoder,
        "b_dec": plain.centre,
        "threshold": plain.thresholds,
    }


def _crosscoder_out(
    dictionary: Dictionary, about: Mapping[str, str], k: int | None
) -> tuple[dict[str, Any], Tensors]:
    if dictionary.thresholds is not None or dictionary.row_limit is not None:
        raise BadInput(
            "dictionary_learning's crosscoders have one threshold and no limit a row; this one has another: keep it in "
            "finetrace's format."
        )
    some = dictionary.kind == "batch_topk"
    norm = dictionary.code_norm
    tensors = {
        "encoder.weight": dictionary.encoder,
        "encoder.bias": dictionary.encoder_bias,
        "decoder.weight": dictionary.decoder,
        "decoder.bias": dictionary.decoder_bias,
        "code_normalization_id": torch.tensor(_NORMS.index(norm) + 1),
        _MEAN: dictionary.mean,
        # Their scale is target_rms over the root of the summed variances, and is kept beside them.
        _STD: (1 / (dictionary.scale * dictionary.d**0.5))[:, None].expand(-1, dictionary.d),
        _SCALE: dictionary.scale,
        _RMS: torch.tensor(1.0),
    }
    config: dict[str, Any] = {
        "dict_class": "BatchTopKCrossCoder" if some else "CrossCoder",
        "activation_dim": dictionary.d,
        "dict_size": dictionary.latents,
        "num_layers": 2,
        "code_normalization": norm.upper(),
        "target_rms": 1.0,
    }
    if norm == "mixed":
        config |= dict.fromkeys(_ALPHAS, 0.5)
    if some:
        config["k"] = _k(k)
        tensors["k"] = torch.tensor(config["k"], dtype=torch.int32)
        each = [dictionary.threshold] * 2 if norm == "decoupled" else dictionary.threshold
        tensors["threshold"] = torch.tensor(each)
    # No more keys: the fork hands all that it finds here to the class.
    return config, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _k(k: int | None) -> int:
    if k is None or k < 1:
        raise BadInput(
            "dictionary_learning's BatchTopK classes keep the number of codes a row that they were trained with: give it as "
            "k (codes do not depend on it)."
        )
    return k
