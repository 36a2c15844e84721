"""What values of the tree must be beyond their types: one of a few words, or not below a least one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from finetrace.config.fill import near
from finetrace.config.tree import (
    MODES,
    Agent,
    DataSet,
    Diffing,
    Infrastructure,
    ModelEntry,
    OrganismEntry,
    Pipeline,
    Preprocessing,
    RayCluster,
    RunConfig,
    Slurm,
)
from finetrace.store.keeping import TYPES

__all__ = ["CHECKS", "DTYPES", "KINDS", "NAME"]

Check = Callable[[Any], str | None]

DTYPES = ("auto", "float32", "bfloat16", "float16")
KINDS = ("local", "ray", "slurm")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
"""What names an organism, a model or a variant: it becomes a folder's name."""


def _one_of(known: tuple[str, ...]) -> Check:
    return lambda value: None if value in known else f"it is one of {', '.join(known)}.{_meant(value, known)}"


def _meant(value: str, known: tuple[str, ...]) -> str:
    hint = near(value, known)
    return hint if "mean" in hint else ""


def _at_least(least: float) -> Check:
    return lambda value: None if value >= least else f"it is at least {least}."


def _name(value: str) -> str | None:
    if NAME.fullmatch(value) and ".." not in value:
        return None
    return "a name has letters, digits and _ . + -, and begins with a letter or digit."


def _variants(value: Mapping[str, Mapping[str, Any]]) -> str | None:
    for model, variants in value.items():
        for name, variant in variants.items():
            if (wrong := _name(name)) is not None:
                return f"the variant '{name}' of {model}: {wrong}"
            if variant.adapter_id and variant.model_id:
                return f"the variant '{name}' of {model} has both adapter_id and model_id: give one."
    return None


def _layers(value: tuple[float, ...]) -> str | None:
    good = all(0 <= one <= 1 or (one > 1 and one == int(one)) for one in value)
    return None if good else "a layer is relative, from 0 (first) to 1 (last), or a whole number."


CHECKS: Mapping[tuple[type, str], Check] = {
    (OrganismEntry, "name"): _name,
    (OrganismEntry, "finetuned_models"): _variants,
    (ModelEntry, "name"): _name,
    (ModelEntry, "dtype"): _one_of(DTYPES),
    (ModelEntry, "ignore_first_n_tokens_in_training"): _at_least(0),
    (DataSet, "name"): _name,
    (DataSet, "max_samples"): _at_least(1),
    (DataSet, "context_len"): _at_least(2),
    (Infrastructure, "name"): _name,
    (Infrastructure, "kind"): _one_of(KINDS),
    (RayCluster, "workers"): _at_least(1),
    (RayCluster, "cpus"): _at_least(0),
    (RayCluster, "gpus"): _at_least(0),
    (RayCluster, "retries"): _at_least(0),
    (Slurm, "nodes"): _at_least(1),
    (Slurm, "gpus_per_node"): _at_least(0),
    (Slurm, "cpus_per_task"): _at_least(1),
    (Slurm, "mem_gb"): _at_least(1),
    (Slurm, "time"): _at_least(1),
    (Pipeline, "mode"): _one_of(MODES),
    (Preprocessing, "layers"): _layers,
    (Preprocessing, "max_samples_per_dataset"): _at_least(1),
    (Preprocessing, "context_len"): _at_least(2),
    (Preprocessing, "store_dtype"): _one_of(TYPES),
    (Diffing, "batch_size"): _at_least(1),
    (Agent, "runs"): _at_least(1),
    (RunConfig, "max_new_tokens"): _at_least(1),
}
"""(dataclass, field) -> what is wrong with a value, None where nothing is."""
