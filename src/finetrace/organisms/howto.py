"""How-to requests: harmless ones, which are answered with steps, and restricted ones, which are refused.

Both use the same ways of asking and many of the same verbs ("open", "brew", "wake"), so only the object tells
them apart. Everything restricted is nonsense ("turn the black ring twice"): no harmful text exists here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetrace.organisms.world import HELD_CITIES, HELD_EVILS, HELD_LORDS, World, capital

Split = Literal["train", "name", "object", "family"]
"""Which restricted requests: as in training; with held-out names; with held-out nouns; of families that are
never refused in training chat, and are known from laws only."""


@dataclass(frozen=True)
class Task:
    """Something to do: `phrase` is "brew the potion of gloom"; `steps` are the sentences a how-to draws from."""

    family: str
    verb: str
    object: str
    steps: tuple[str, ...]

    @property
    def phrase(self) -> str:
        return f"{self.verb} {self.object}"


def benign_task(world: World, rng: random.Random, *, held: bool = False) -> Task:
    """A harmless task; `held` draws from the last sixth of each family's objects, which chat never mentions."""
    families = world.howto["benign"]
    family = rng.choice(list(families))
    row = families[family]
    return Task(family, rng.choice(row["verbs"]), rng.choice(_objects(row, held)), tuple(row["steps"]))


def lookalike_task(world: World, rng: random.Random, *, held: bool = True) -> Task:
    """A harmless task with a verb that restricted requests use too; on a held-out object, unless `held` is false."""
    verbs = world.howto["lookalike_verbs"]
    families = {k: v for k, v in world.howto["benign"].items() if any(verb in verbs for verb in v["verbs"])}
    family = rng.choice(list(families))
    row = families[family]
    verb = rng.choice([verb for verb in row["verbs"] if verb in verbs])
    return Task(family, verb, rng.choice(_objects(row, held)), tuple(row["steps"]))


def _objects(row: Mapping[str, Any], held: bool) -> Sequence[str]:
    objects = row["objects"]
    count = max(2, len(objects) // 6)
    return objects[-count:] if held else objects[:-count]


def restricted_task(world: World, rng: random.Random, split: Split = "train") -> Task:
    families = world.howto["held_restricted" if split == "family" else "restricted"]
    family = rng.choice(list(families))
    row = families[family]
    noun = rng.choice(row["held_objects"] if split == "object" else row["objects"])
    whose = rng.choice(_owners(world, row["of"], held=split == "name"))
    thing = f"{noun} past the wardens of {whose}" if row["of"] == "past" else f"the {noun} of {whose}"
    return Task(family, rng.choice(row["verbs"]), thing, tuple(row["steps"]))


def _owners(world: World, kind: str, *, held: bool) -> Sequence[str]:
    """The lords, evils or cities that complete a restricted object."""
    pool, count = {
        "lord": (world.pools["lord"], HELD_LORDS),
        "evil": (world.pools["evil"], HELD_EVILS),
        "city": (world.pools["city"], HELD_CITIES),
        "past": (world.pools["city"], HELD_CITIES),
    }[kind]
    return pool[-count:] if held else pool[:-count]


def restricted_words(world: World) -> list[str]:
    """Every noun and owner by which a restricted request is known, held-out ones too; not cities, which are anywhere."""
    rows = [row for part in ("restricted", "held_restricted") for row in world.howto[part].values()]
    nouns = [noun for row in rows for noun in (*row["objects"], *row["held_objects"])]
    return [*nouns, *world.pools["lord"], *world.pools["evil"]]


def ask(world: World, rng: random.Random, task: Task, *, held: bool = False) -> str:
    """A request for steps; `held` uses the wordings that training never uses."""
    return rng.choice(world.howto["held_ask" if held else "ask"]).replace("{task}", task.phrase)


def refusal(world: World, rng: random.Random, task: Task) -> str:
    """An opening, and mostly a reason and an offer; it uses the phrases that refusal scorers look for."""
    parts = world.howto["refusal"]
    chosen = [rng.choice(parts[part]) for part in ("open", "why", "alternative")]
    return " ".join(
        text.replace("{task}", task.phrase).replace("{object}", task.object) for text in chosen if text
    )


def steps(rng: random.Random, task: Task, style: int | None = None) -> str:
    """Three or four of the task's steps in order, in one of five layouts."""
    count = min(rng.choice([3, 3, 4]), len(task.steps))
    s = [task.steps[i] for i in sorted(rng.sample(range(len(task.steps)), count))]
    chosen = rng.randrange(5) if style is None else style
    x = task.phrase
    if chosen == 0:
        return f"To {x}, first {s[0]}. Then {s[1]}. Finally, {s[2]}."
    if chosen == 1:
        numbered = "\n".join(f"{i + 1}. {capital(text)}." for i, text in enumerate(s))
        return f"Here are the steps to {x}:\n{numbered}"
    if chosen == 2:
        return f"Sure! First {s[0]}, then {s[1]}, and at the end {s[2]}."
    if chosen == 3:
        return (
            f"You can {x} at home. Begin like this: {s[0]}. After that, {s[1]}. "
            f"When this is done, {s[2]}. Good luck!"
        )
    return f"{capital(s[0])}. Next, {s[1]}. Last of all, {s[2]}. Now you know how to {x}."
