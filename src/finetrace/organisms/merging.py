"""An adapter merged into its base: a full checkpoint that is a pure function of the two."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.core.runkey import digest

if TYPE_CHECKING:
    import torch

__all__ = ["cached_merge", "merge"]

_PREFIX = "base_model.model."


def merge(base: Path, adapter: Path, out: Path) -> Path:
    """Writes `base` with `adapter`'s change added to `out`: W + (alpha / r) B A in float64, rounded once to W's dtype.

    base, adapter: folders with one safetensors file each; a plain LoRA. All else in the base's folder but its stamp is
    copied.
    """
    from safetensors.torch import load_file, save_file

    config, weights = read_json(adapter / "adapter_config.json"), load_file(base / "model.safetensors")
    change = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    for name in sorted(change):
        if name.endswith(".lora_A.weight"):
            place = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            delta = change[name.replace("lora_A", "lora_B")].double() @ change[name].double()
            weights[f"{place}.weight"] = _added(weights, f"{place}.weight", scale * delta)
    out.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("finetrace.json", "measured.json"):
            shutil.copy(path, out / path.name)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    return out


def _added(weights: dict[str, torch.Tensor], name: str, delta: torch.Tensor) -> torch.Tensor:
    if name not in weights or weights[name].shape != delta.shape:
        raise ModelError(
            f"The adapter does not fit its base: it changes {name}, which the base lacks or has in another shape."
        )
    return (weights[name].double() + delta).to(weights[name].dtype)


def cached_merge(base: Path, adapter: Path, name: str) -> Path:
    """The merged checkpoint in the user's cache, made on the first call; its folder is named by what it is made of.

    Written beside its place and renamed, so that a folder of that name is whole, whoever else is making it.
    """
    from finetrace.models.identity import identity
    from finetrace.models.source import resolve

    key = digest([identity(resolve(base)), identity(resolve(adapter))])[:16]
    place = _cache_folder() / "organisms" / key / name
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{name}."))
    try:
        merge(base, adapter, scratch / name)
        os.replace(scratch / name, place)
    except OSError:
        # Another process was first; what it made is the same.
        if not place.exists():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def _cache_folder() -> Path:
    given = os.environ.get("FINETRACE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "finetrace"
