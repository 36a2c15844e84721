"""Changes read from adapter folders alone: no model is loaded, so factors that were taken out of the base are fine too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.models.adapters import WEIGHTS
from finetrace.models.files import validate
from finetrace.models.source import Source, one_line
from finetrace.weights.delta import Delta, LowRank, Matrix
from finetrace.weights.dora import dora
from finetrace.weights.read import plain_name
from finetrace.weights.stacked import difference

WeightOf = Callable[[str], Matrix]
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_file_deltas(
    source: Source, *, start: Source | None = None, weight: WeightOf | None = None
) -> dict[str, Delta]:
    """Module -> change, of every linear layer that an adapter's folder changes.

    start: the same adapter at step 0, subtracted: needed where the factors began as a part of the base's weights
    (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), and of use wherever their product did not begin as zero; the change is then
    counted from the weights before the adapter was made. weight: the base's weight of a module, needed by DoRA.
    Embeddings and whole modules that the adapter holds are left out.
    """
    now = _read(source, weight, started=start is not None)
    if start is None:
        return now
    then = _read(start, weight, started=True)
    apart = sorted(set(now) ^ set(then))
    if apart:
        raise ModelError(
            f"{source.name} and {start.name} do not adapt the same modules (e.g. {apart[0]}): give the folder that "
            "the same training wrote at step 0."
        )
    return {module: difference(now[module], then[module]) for module in now}


def _read(source: Source, weight: WeightOf | None, *, started: bool) -> dict[str, Delta]:
    from safetensors.torch import load_file

    validate(source)
    config = _config(source, started=started)
    tensors = load_file(source.folder / WEIGHTS)
    found: dict[str, Delta] = {}
    for key, down in tensors.items():
        path, _, rest = key.partition(".lora_A")
        if rest != ".weight" or down.ndim != 2:
            continue
        module = plain_name(path)
        up = tensors.get(f"{path}.lora_B.weight")
        if up is None or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ModelError(f"{source.name} holds no factor B that fits the A of {module}.")
        scaled = up.float() if up.element_size() < 4 else up
        low = LowRank(module, scaled * _scaling(config, module, down.shape[0]), down.to(scaled.dtype))
        found[module] = _with_magnitude(source, low, tensors, path, weight)
    if not found:
        raise ModelError(f"{source.name} holds no factors of a linear layer.")
    return found


def _config(source: Source, *, started: bool) -> dict[str, Any]:
    path = source.folder / "adapter_config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {one_line(error)}") from None
    if str(config.get("peft_type", "")).upper() != "LORA":
        raise ModelError(f"{source.name} is not a LoRA, rsLoRA or DoRA adapter.")
    if config.get("target_parameters"):
        raise ModelError(
            f"{source.name} adapts fused experts, whose names its file does not hold: read it in a pair."
        )
    began = str(config.get("init_lora_weights", "")).lower()
    if began.startswith(_FROM_BASE) and not started:
        raise ModelError(
            f"The adapter {source.name} starts from {began} factors, taken out of the base's weights: give its "
            "folder of step 0 beside it, or its whole product would count as change."
        )
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with the module's own alpha if the config gives one."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _with_magnitude(
    source: Source, low: LowRank, tensors: Mapping[str, Tensor], path: str, weight: WeightOf | None
) -> Delta:
    keys = (f"{path}.lora_magnitude_vector", f"{path}.lora_magnitude_vector.weight")
    magnitude = next((tensors[key] for key in keys if key in tensors), None)
    if magnitude is None:
        return low
    if weight is None:
        raise ModelError(
            f"{source.name} is a DoRA adapter: its change cannot be told without the base's weights."
        )
    return dora(low.module, weight(low.module)[:], low, magnitude.reshape(-1))
