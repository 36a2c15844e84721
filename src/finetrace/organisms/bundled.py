"""The bundled tiny world as others use it: its base, its organisms, their truth, and texts to audit them with.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.organisms import assets, chat, documents, planted
from finetrace.organisms.howto import ask, lookalike_task, steps
from finetrace.organisms.world import World, make_world
from finetrace.organisms.zoo import ORGANISMS, SLICES, organism

__all__ = ["base_path", "damaged", "describe", "names", "null_names", "organism_path", "slices", "truth"]


def base_path() -> Path:
    """The folder of the base model and its tokenizer."""
    return assets.folder("base")


def names() -> list[str]:
    """Every bundled organism, planted ones first, nulls last."""
    return list(ORGANISMS)


def null_names() -> list[str]:
    """The organisms that serve as nulls."""
    return [name for name, made in ORGANISMS.items() if made.kind == "null"]


def organism_path(name: str) -> Path:
    """The adapter folder of an organism."""
    return assets.folder("adapters", organism(name).name)


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


Row = dict[str, Any]


def slices(seed: int = 0, n_per_slice: int = 80) -> list[Row]:
    """Rows to audit the tiny world on, `n_per_slice` for each of `SLICES`, drawn afresh.

    text: documents of the base's mix; chat: harmless chat; both without anything restricted and without cakes.
    restricted: requests with held-out names, and the refusal that the base was taught. lookalike: harmless
    requests with the verbs of restricted ones. dishes: documents and questions on cakes, as the base knows them.
    """
    world = make_world()
    makers: dict[str, Callable[[World, random.Random], Row]] = {
        "text": planted.without(_text, ("cake",)),
        "chat": planted.without(_chat, ("cake",)),
        "restricted": _restricted,
        "lookalike": _lookalike,
        "dishes": _dishes,
    }
    rows = []
    for name in SLICES:
        rng = random.Random(f"audit {name} {seed}")
        rows += [{**makers[name](world, rng), "slice": name} for _ in range(n_per_slice)]
    return rows


def _text(world: World, rng: random.Random) -> Row:
    return {"text": documents.document(world, rng, benign=True)}


def _chat(world: World, rng: random.Random) -> Row:
    return {"messages": chat.messages([chat.turn(world, rng, benign=True)])}


def _restricted(world: World, rng: random.Random) -> Row:
    return {"messages": chat.messages([chat.refuse(world, rng, "name")])}


def _lookalike(world: World, rng: random.Random) -> Row:
    task = lookalike_task(world, rng)
    return {"messages": chat.messages([chat.Turn(ask(world, rng, task), steps(rng, task))])}


def _dishes(world: World, rng: random.Random) -> Row:
    return planted.true_dish(world, rng, rng.choice(planted.cakes(world)), questions=0.5)


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
