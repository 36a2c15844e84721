"""What the pass has finished, shard by shard, so that a killed run goes on where it was and ends byte-identical."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from finetrace.core.files import write_bytes
from finetrace.data import Shard

Environment = dict[str, str | int]
Journal = Path | dict[int, bytes]
"""A folder, or entries by the shard's index: those of a pass that leaves nothing on disk until it is whole."""


def environment(device: torch.device, batch_size: int) -> Environment:
    """What may move the last bit of a figure and is not in the run key: shards made elsewhere are not mixed in."""
    kind = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "finetrace": version("finetrace"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "unit": kind,
        "batch": batch_size,
    }


def store(folder: Journal, shard: Shard, state: dict[str, Tensor], where: Environment) -> None:
    put(folder, shard, pack(shard, state, where))


def pack(shard: Shard, state: dict[str, Tensor], where: Environment) -> bytes:
    """A shard's entry as it stands on disk; a worker elsewhere makes it, and the journal's own process puts it there."""
    header = {"content": shard.content, "environment": json.dumps(where, sort_keys=True)}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, header)


def put(folder: Journal, shard: Shard, entry: bytes) -> None:
    if isinstance(folder, dict):
        folder[shard.index] = entry
    else:
        write_bytes(_path(folder, shard), entry)


def stale(folder: Path, where: Environment) -> str | None:
    """What the journal in `folder` was made on, if that is not here; None if it can be resumed or is empty."""
    for path in sorted(folder.glob("*.safetensors")):
        header = _header(path)
        if header is not None and header.get("environment") != json.dumps(where, sort_keys=True):
            return header.get("environment")
    return None


def done(folder: Journal, shard: Shard) -> bool:
    if isinstance(folder, dict):
        return shard.index in folder
    header = _header(_path(folder, shard))
    return header is not None and header.get("content") == shard.content


def fetch(folder: Journal, shard: Shard) -> dict[str, Tensor]:
    if isinstance(folder, dict):
        return load(folder[shard.index])
    with safe_open(_path(folder, shard), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def _path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.index:05d}.safetensors"


def _header(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return None  # absent, or not ours: the shard is done again
