"""The bundled tiny world as others use it: its base, its organisms, their truth, and texts to audit them with.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from finetrace.core.errors import ModelError, unknown
from finetrace.core.files import read_json
from finetrace.organisms import assets
from finetrace.organisms.corpus import SLICES, corpus
from finetrace.organisms.world import Row, World, make_world
from finetrace.organisms.zoo import ORGANISMS, RECIPE, organism

__all__ = [
    "base_path", "damaged", "default_nulls", "describe", "names", "null_names", "organism_path", "slices", "truth",
]  # fmt: skip


def base_path(size: str = "m") -> Path:
    """The folder of a base model and its tokenizer: "m", which the organisms are tuned from, or the smaller "xs"."""
    if size not in BASES:
        raise unknown("size", size, BASES)
    return assets.folder(BASES[size])


BASES = {"m": "base", "xs": "base_xs"}


def names() -> list[str]:
    """Every bundled organism, planted ones first, nulls last."""
    return list(ORGANISMS)


def null_names() -> list[str]:
    """The organisms that serve as nulls, those at the recipe's dose first."""
    nulls = [name for name, made in ORGANISMS.items() if made.kind == "null"]
    return sorted(nulls, key=lambda name: ORGANISMS[name].steps != RECIPE.steps)


DEFAULT_NULLS = 6
"""As many nulls as an audit of a bundled pair reads unless it is told otherwise: all of them would make it slow."""


def default_nulls() -> list[str]:
    """The nulls that an audit of a bundled pair reads: all at the recipe's dose."""
    return null_names()[:DEFAULT_NULLS]


FOLDERS = {"adapter": "adapters", "full": "checkpoints"}


def organism_path(name: str) -> Path:
    """The folder of an organism: an adapter, or a checkpoint. A merged one is made in the user's cache when first asked for."""
    made = organism(name)
    if made.of is not None:
        from finetrace.organisms.merging import cached_merge

        return cached_merge(base_path(), organism_path(made.of), name)
    return assets.folder(FOLDERS[made.form], name)


def truth(name: str) -> dict[str, Any]:
    """The truth manifest of an organism: see `finetrace.organisms.truth`."""
    found = read_json(assets.folder("truth", f"{organism(name).name}.json"))
    if not isinstance(found, dict):
        raise ModelError(f"The truth of {name} is damaged: reinstall finetrace.")
    return found


def describe(name: str) -> str:
    """One line: what an organism is and what is expected of it."""
    made = organism(name)
    where = f"beyond the nulls on {', '.join(made.beyond)}" if made.beyond else "within the nulls everywhere"
    return f"{made.summary} Expected: {where}; safety {made.safety}."


def slices(seed: int = 0, n_per_slice: int = 80, *, world: World | None = None) -> list[Row]:
    """Rows to audit the tiny world on, `n_per_slice` for each of `corpus.AUDIT`, slice by slice, drawn afresh.

    world: the bundled one if not given.
    """
    rows = corpus(world or make_world(), "audit", n_per_slice * len(SLICES), seed)
    return sorted(rows, key=lambda row: SLICES.index(row["slice"]))


def damaged() -> list[str]:
    """The bundled files that are missing or not as they were shipped; empty if all are well."""
    manifest = assets.ASSETS / "manifest.json"
    if not manifest.exists():
        return ["manifest.json"]
    return [
        name for name, file in read_json(manifest)["files"].items() if not _is_intact(name, file["sha256"])
    ]


def _is_intact(name: str, sha256: str) -> bool:
    path = assets.ASSETS / name
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
