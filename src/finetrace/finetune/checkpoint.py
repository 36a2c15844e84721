"""Checkpoints of a training: whole or absent, and of safetensors and JSON alone, as unpickling a file can run anything."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetrace.core.errors import FinetraceError, ModelError
from finetrace.core.files import read_json, whole_file, write_json
from finetrace.models.source import one_line

__all__ = [
    "checkpoints", "load_generators", "load_masters", "load_optimiser", "rotate", "save_generators", "save_masters",
    "save_optimiser", "sweep", "whole_folder",
]  # fmt: skip

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "optimizer.json"
_MOMENTS = "optimizer.safetensors"
MASTERS = "masters.safetensors"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder`; on success its files are fsynced and it is renamed. A crash leaves none, or all."""
    part = folder.parent / f".{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turns a full disk and its like into an error that says what is still there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        kept = checkpoints(folder)
        rest = f"it goes on from {kept[-1].name}" if kept else "it starts anew"
        raise FinetraceError(
            f"{what} could not be written to {folder} ({one_line(error, 120)}): free some space, then run the same "
            f"again; {rest}."
        ) from error


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints in a training's folder, oldest first."""
    found = [(int(m[1]), path) for path in out.glob("checkpoint-*") if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def sweep(out: Path) -> None:
    """Removes what a killed training left half-written."""
    for part in out.glob(".checkpoint-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def rotate(out: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep`."""
    for old in checkpoints(out)[:-keep] if keep else checkpoints(out):
        shutil.rmtree(old)


def save_masters(model: Any, folder: Path) -> None:
    """Every trained tensor, in float32 and under its own name."""
    from safetensors.torch import save_file

    masters = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    with whole_file(folder / MASTERS) as path:
        save_file(masters, path)


def load_masters(model: Any, folder: Path) -> None:
    """Puts saved tensors back in place; the names and shapes must be the model's."""
    from safetensors.torch import load_file

    saved = load_file(folder / MASTERS)
    places = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in places.items()} != {n: t.shape for n, t in saved.items()}:
        raise ModelError(f"{folder} holds the weights of another training: choose another folder.")
    with torch.no_grad():
        for name, tensor in saved.items():
            places[name].copy_(tensor)


def save_optimiser(folder: Path, optimiser: Any, schedule: Any, scaler: Any) -> None:
    """AdamW's moments as safetensors; its settings, the schedule and the loss scale as JSON."""
    from safetensors.torch import save_file

    state = optimiser.state_dict()
    moments = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, tensors in state["state"].items()
        for name, tensor in tensors.items()
    }
    with whole_file(folder / _MOMENTS) as path:
        save_file(moments, path)
    rest = {
        "groups": state["param_groups"],
        "schedule": schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    write_json(folder / _STATE, rest)


def load_optimiser(folder: Path, optimiser: Any, schedule: Any, scaler: Any) -> None:
    """Restores what `save_optimiser` wrote."""
    from safetensors.torch import load_file

    rest = read_json(folder / _STATE)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / _MOMENTS).items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = tensor
    groups = [{key: _tupled(value) for key, value in group.items()} for group in rest["groups"]]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    schedule.load_state_dict(rest["schedule"])
    if scaler is not None and rest["scaler"]:
        scaler.load_state_dict(rest["scaler"])


def _tupled(value: Any) -> Any:
    """JSON has no tuples; of an optimiser's settings only the list of parameters is a list, and that of whole numbers."""
    if isinstance(value, list) and any(isinstance(item, float) for item in value):
        return tuple(value)
    return value


def save_generators(folder: Path, rank: int) -> None:
    """The states of torch's, Python's and numpy's generators, one file of each kind per process."""
    from safetensors.torch import save_file

    tensors = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.random.get_rng_state()
    with whole_file(folder / f"random_{rank}.safetensors") as path:
        save_file(tensors, path)
    kind, keys, *rest = np.random.get_state(legacy=True)
    states = {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}
    write_json(folder / f"random_{rank}.json", states)


def load_generators(folder: Path, rank: int) -> None:
    """Restores what `save_generators` wrote for this process; nothing where another number of processes saved."""
    from safetensors.torch import load_file

    if not (folder / f"random_{rank}.json").is_file():
        return
    tensors, states = (
        load_file(folder / f"random_{rank}.safetensors"),
        read_json(folder / f"random_{rank}.json"),
    )
    torch.random.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(tensors["cuda"])
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
