"""Adapters on one copy of the weights: loading them by name, switching between them, scaling them.

PEFT says nothing about keys of the file that the model has no place for, and only warns about those that the file
lacks; here both are kept, and another shape is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.models.landing import landed
from finetrace.models.loading import LOAD_ERRORS, quiet
from finetrace.models.source import Source, one_line

WEIGHTS = "adapter_model.safetensors"
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Fit:
    """How an adapter's file met the model.

    missing: places the file leaves empty. unexpected: keys with no place. copies: whole tensors of the base that the
    file carries along, unchanged.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    copies: tuple[str, ...] = ()


def read_adapter_config(source: Source) -> dict[str, Any]:
    """The adapter_config.json of a LoRA-like adapter; other PEFT types are a ModelError."""
    path = source.folder / "adapter_config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {one_line(error)}") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ModelError(f"{path} names no peft_type: it is not an adapter's configuration.")
    kind = str(config["peft_type"]).upper()
    if kind != "LORA":
        raise ModelError(
            f"{source.name} is a {kind} adapter; LoRA, rsLoRA and DoRA adapters are supported "
            "(merge it into its base and compare the full checkpoint)."
        )
    _refuse_changed_base(source, config)
    return config


def _refuse_changed_base(source: Source, config: Mapping[str, Any]) -> None:
    """Settings with which PEFT changes the base itself, so that the base would not be the base with adapters off."""
    start = str(config.get("init_lora_weights", "")).lower()
    wrong = {
        f"starts from {start} factors, taken out of the base's weights": start.startswith(_FROM_BASE),
        f"trains the base's biases (bias={config.get('bias')!r})": config.get("bias", "none") != "none",
        "repeats the base's layers (layer_replication)": bool(config.get("layer_replication")),
        "is an activated LoRA (aLoRA)": bool(config.get("alora_invocation_tokens")),
    }
    for what, holds in wrong.items():
        if holds:
            raise ModelError(
                f"The adapter {source.name} {what}, which cannot share the base's weights: "
                "merge it into its base and compare the full checkpoint."
            )


def attach(model: Any, peft_model: Any | None, source: Source, name: str) -> tuple[Any, Fit]:
    """Loads an adapter under `name` on `model` (wrapped by PEFT on the first call); never touches the base's weights."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        with quiet():
            config: Any = LoraConfig.from_pretrained(str(source.folder))
            config.inference_mode = True
            # Places that the file leaves empty then stay zero, whatever the training began with.
            config.init_lora_weights = True
            config, weights = landed(model, config, load_file(source.folder / WEIGHTS))
            if peft_model is None:
                peft_model = PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=False)
            else:
                peft_model.add_adapter(name, config, autocast_adapter_dtype=False)
            places = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
            fit = _fit(source, _converted(peft_model, config, weights, name), places, model)
            # Only what has a place: PEFT would also write a saved embedding into the base's own.
            ours = {key: value for key, value in weights.items() if key not in {*fit.unexpected, *fit.copies}}
            set_peft_model_state_dict(peft_model, ours, adapter_name=name)
    except LOAD_ERRORS as error:
        raise ModelError(f"The adapter {source.name} does not fit its base: {one_line(error)}") from error
    peft_model.eval().requires_grad_(False)
    return peft_model, fit


def _converted(
    peft_model: Any, config: Any, weights: Mapping[str, Tensor], name: str
) -> Mapping[str, Tensor]:
    """The file's tensors under the names this version of transformers uses (some experts were fused since)."""
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    return convert_peft_adapter_state_dict_for_transformers(
        model=peft_model, peft_config=config, adapter_state_dict=dict(weights), adapter_name=name
    )


def _fit(source: Source, given: Mapping[str, Tensor], places: Mapping[str, Tensor], model: Any) -> Fit:
    for key in sorted(given.keys() & places.keys()):
        if given[key].shape != places[key].shape:
            raise ModelError(
                f"The adapter {source.name} is of another shape than its base: {key} is "
                f"{tuple(given[key].shape)} in the file and {tuple(places[key].shape)} in the model; "
                "it was probably trained on a different base."
            )
    missing = tuple(sorted(places.keys() - given.keys()))
    unexpected = tuple(sorted(given.keys() - places.keys()))
    saved = [key for key in missing if ".lora_" not in key]
    if saved:
        raise ModelError(f"The adapter {source.name} says it saves {saved[0]} but its file does not hold it.")
    copies = _copies_of_the_base(source, given, unexpected, model)
    return Fit(missing, tuple(key for key in unexpected if key not in copies), copies)


def _copies_of_the_base(
    source: Source, given: Mapping[str, Tensor], unexpected: tuple[str, ...], model: Any
) -> tuple[str, ...]:
    """Keys of whole embeddings that the file carries along, equal to the base's.

    One that differs (a resized or retrained vocabulary) cannot share the base's weights: a ModelError.
    """
    own = {k.replace(".base_layer.", "."): v for k, v in model.named_parameters(remove_duplicate=False)}
    copies = []
    for key in unexpected:
        place = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        tensor = own.get(place)
        if tensor is None or ".lora_" in key:
            continue
        copies.append(key)
        if tensor.shape != given[key].shape or not torch.equal(tensor.cpu(), given[key].to(tensor.dtype)):
            raise ModelError(
                f"The adapter {source.name} carries its own {place} (a resized or retrained vocabulary): "
                "merge it into its base and compare the full checkpoint."
            )
    return tuple(copies)


def lora_layers(peft_model: Any, name: str) -> dict[str, Any]:
    """Module name -> LoRA layer, of those that the adapter `name` changes."""
    from peft.tuners.lora import LoraLayer

    found = {k: m for k, m in peft_model.named_modules() if isinstance(m, LoraLayer) and name in m.scaling}
    return {key.removeprefix("base_model.model."): module for key, module in found.items()}


def saved_modules(peft_model: Any, name: str) -> dict[str, Any]:
    """Module name -> wrapper, of the modules that the adapter `name` replaces or retrains as a whole."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = {
        key: module
        for key, module in peft_model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters
    }
    return {key.removeprefix("base_model.model."): module for key, module in found.items()}


def switch(peft_model: Any, name: str | None) -> None:
    """Makes `name` the one active adapter, or none of them (the base, bit-exactly).

    PEFT's own calls also ask every tensor for gradients and take that back, in four walks over all modules: on a small
    model that costs more than a forward. Here every tensor stays as frozen as `attach` left it.
    """
    layers, wrappers = _switches(peft_model)
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]
    for wrapper in wrappers:
        wrapper.enable_adapters(name is not None)
        if name is not None:
            wrapper.set_adapter([name] if name in wrapper._adapters else [], inference_mode=True)
        wrapper.requires_grad_(False)
    if name is not None:
        peft_model.base_model.active_adapter = name


def _switches(peft_model: Any) -> tuple[list[Any], list[Any]]:
    """Adapted layers, and wrappers of modules that are replaced as a whole; an adapter's own modules are not walked."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers, wrappers, todo = [], [], [peft_model.base_model.model]
    while todo:
        module = todo.pop()
        inner = module._modules
        if isinstance(module, AuxiliaryTrainingWrapper):
            wrappers.append(module)
        elif isinstance(module, BaseTunerLayer):
            layers.append(module)
            inner = {"base_layer": inner.get("base_layer")}
        todo += [one for one in inner.values() if one is not None]
    return layers, wrappers


@contextmanager
def scaled(peft_model: Any, name: str, factor: float) -> Iterator[None]:
    """Multiplies the adapter's delta by `factor` inside."""
    layers = lora_layers(peft_model, name).values()
    before = [layer.scaling[name] for layer in layers]
    try:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[name] = scaling * factor
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[name] = scaling
