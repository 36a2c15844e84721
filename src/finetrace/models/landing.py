"""Where an adapter's keys land in a model whose text side has other names than when the adapter was trained.

Models that read images have had their text side in three places: `model.layers`, `language_model.model.layers` and
`model.language_model.layers`. An adapter of any of them is put where the text side of the model at hand is, and its
settings name the very modules: patterns written for the other names, and names that the images' side has too, would
else put it in the wrong places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_PEFT = "base_model.model."
_TEXT_SIDES = (
    "model.language_model.model",
    "model.language_model",
    "language_model.model",
    "language_model",
    "model",
)
_OF_LORA = re.compile(r"(?P<module>.+?)\.(?P<rest>(?:lora_|modules_to_save|trainable_tokens|base_layer).*)")
_IN_TEXT = ("layers.", "embed_tokens", "norm")


def landed(model: Any, config: Any, weights: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The adapter's settings and tensors under this model's names; as they are where the model has but a text side.

    A key that has no place keeps its name. The settings come back changed in place.
    """
    modules = dict(model.named_modules())
    if not reads_images(model):
        return config, dict(weights)
    text = next(name for name, module in modules.items() if module is model.get_decoder())
    renamed = {key: _placed(key, text, modules) for key in weights}
    found = {name for key in renamed.values() if (name := _module_of(key)) in modules and ".lora_" in key}
    wanted = found | _named_by(config, text, modules)
    if found and wanted:
        config.target_modules = sorted(wanted)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
        for field in (config.rank_pattern, config.alpha_pattern):
            moved = {_place(name, text, modules): value for name, value in field.items()}
            field.clear()
            field.update(moved)
    return config, {renamed[key]: tensor for key, tensor in weights.items()}


def reads_images(model: Any) -> bool:
    """Whether the model has more than a text side: its decoder is a part of something that has other parts."""
    name = next(name for name, module in model.named_modules() if module is model.get_decoder())
    return name.rpartition(".")[2] == "language_model" or name.startswith("language_model.")


def _named_by(config: Any, text: str, modules: Mapping[str, nn.Module]) -> set[str]:
    """The linear layers of the text side that the adapter's own settings name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules == "all-linear":
        return set()
    # A layer that has an adapter already is the one inside it.
    linear = {
        name.removesuffix(".base_layer")
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and name.startswith(f"{text}.") and ".lora_" not in name
    }
    return {name for name in linear if check_target_module_exists(config, name)}


def _placed(key: str, text: str, modules: Iterable[str]) -> str:
    """A file's key with its module under the model's name."""
    found = _OF_LORA.fullmatch(key.removeprefix(_PEFT))
    if found is None:
        return key
    return f"{_PEFT}{_place(found['module'], text, modules)}.{found['rest']}"


def _place(module: str, text: str, modules: Iterable[str]) -> str:
    if module in modules:
        return module
    tries = [f"model.{module}"]
    for side in _TEXT_SIDES:
        rest = module.removeprefix(f"{side}.")
        if rest != module and rest.startswith(_IN_TEXT):
            tries.append(f"{text}.{rest}")
    tries.append(module.removeprefix("language_model."))
    return next((name for name in tries if name in modules), module)


def _module_of(key: str) -> str:
    return key.removeprefix(_PEFT).partition(".lora_")[0]
