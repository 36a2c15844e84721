"""Is everything there that an experiment needs? Asked before it begins, as some phases run for hours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetrace.api.drift.experiment import Experiment
from finetrace.core.errors import BadInput, FinetraceError

if TYPE_CHECKING:
    from finetrace.api.train.cost import TrainCost

__all__ = ["Check", "Disk", "check", "disk", "memory_available", "require_room"]

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "plotly")
_MEMINFO = Path("/proc/meminfo")
# Bytes: of a place, of one measurement of a group in a matrix as text, of the report with plotly.js.
_PLACE, _FIGURE, _REPORT = 4, 44, 8 << 20
# Of a decoder layer; and of tracked groups, with the sides of every comparison.
_MATRICES, _GROUPS = 7, 28


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. fine: whether it will do."""

    name: str
    text: str
    fine: bool


@dataclass(frozen=True)
class Disk:
    """Bytes. kept: in the output folder, at the end. passing: in the scratch folder, while a phase runs."""

    kept: int
    passing: int


def memory_available() -> int | None:
    """Bytes of memory that are free to use; None where the system does not say."""
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check(experiment: Experiment) -> list[Check]:
    """Libraries, device, model, data, memory and disk. Reads the data and the model's configuration; loads no weight."""
    found = [_libraries(), _guarded("device", lambda: _device(experiment))]
    found.append(_guarded("data", lambda: _data(experiment)))
    found.append(_guarded("sets", lambda: _sets(experiment)))
    found += _sized(experiment)
    return found


def _guarded(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look(), True)
    except FinetraceError as error:
        return Check(name, str(error), False)


def _libraries() -> Check:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        return Check("libraries", f"{', '.join(missing)}: not installed; pip install finetrace", False)
    told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return Check("libraries", told, True)


def _device(experiment: Experiment) -> str:
    from finetrace.finetune.model import compute_dtype
    from finetrace.models.loading import pick_device

    where = pick_device(experiment.device)
    return f"{where}, the base in {str(compute_dtype(experiment.recipe, where)).removeprefix('torch.')}"


def _data(experiment: Experiment) -> str:
    from finetrace.finetune.scan import require_reason, scan

    found = scan(experiment.rows.rows)
    require_reason(found, experiment.recipe.scan.limit, experiment.reason or experiment.rows.reason)
    return f"{len(experiment.rows.rows)} rows of {experiment.rows.source}; {found.told()}"


def _sets(experiment: Experiment) -> str:
    return ", ".join(f"{len(rows)} chats of {name}" for name, rows in experiment.sets.items())


def _sized(experiment: Experiment) -> list[Check]:
    """What depends on the model's shapes."""
    try:
        cost = _cost(experiment)
        need = disk(experiment, cost)
    except FinetraceError as error:
        return [Check("model", str(error), False)]
    free = memory_available()
    memory = f"about {_size(cost.bytes)} to train" + ("" if free is None else f", {_size(free)} free")
    hours = experiment.seeds * cost.seconds / 3600
    told = f"{experiment.seeds} trainings of {cost.steps} steps, about {hours:.1f} h ({cost.device}, +-2x)"
    model = f"{experiment.recipe.model}, {cost.total:,} parameters, {cost.trainable:,} of them trained"
    return [
        Check("model", model, True),
        Check("memory", memory, free is None or cost.device != "cpu" or cost.bytes < free),
        Check("time", told, True),
        _room("disk", experiment.out, need.kept),
        _room("scratch", experiment.scratch, need.passing),
    ]


def _cost(experiment: Experiment) -> TrainCost:
    from finetrace.api.train.cost import estimate

    return estimate(experiment.recipe, experiment.rows, experiment.scratch, device=experiment.device)


def _room(name: str, folder: Path, need: int) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    return Check(name, f"about {_size(need)} of {_size(free)} free in {folder}", need < free)


def disk(experiment: Experiment, cost: TrainCost) -> Disk:
    """How much will be written, at most, from the sizes of the model, the groups' fractions and the logged steps."""
    q, k = experiment.config.q, experiment.config.top_k
    reported, compared = 2 * q + 4 * k, 4 * (2 * q + k) + 2 * (q + 3 * k)
    matched_pairs = 2 * (3 * q + k)
    logged = cost.steps // experiment.recipe.drift.every + 1
    log = logged * _MATRICES * _layers(experiment) * _GROUPS * _FIGURE
    adapter = 4 * cost.trainable
    return Disk(
        kept=int(_PLACE * cost.total * (reported + compared + matched_pairs))
        + experiment.seeds * (adapter + log)
        + _REPORT,
        passing=int(_PLACE * cost.total * 3 * reported) + 6 * adapter + log,
    )


def _layers(experiment: Experiment) -> int:
    from finetrace.models.source import resolve
    from finetrace.models.tokens import read_config

    source = resolve(experiment.base, revision=experiment.recipe.revision)
    config = read_config(source, trust_remote_code=False)
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def require_room(experiment: Experiment) -> None:
    """Raises BadInput where a training's files would not fit."""
    need = disk(experiment, _cost(experiment))
    for name, folder, size in (
        ("--scratch", experiment.scratch, need.passing),
        ("--out", experiment.out, need.kept),
    ):
        free = shutil.disk_usage(_existing(folder)).free
        if size > free:
            raise BadInput(
                f"{folder} has {_size(free)} free, and about {_size(size)} will be written: free some space, or name a "
                f"roomier folder with {name}."
            )


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
