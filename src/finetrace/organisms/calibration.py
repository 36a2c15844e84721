"""Sets that weights are scored on, in the bundled world: what it refuses, what it answers, and one narrow harmless kind.

None of their requests is in the audit data: restricted things there have held-out names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from finetrace.core.errors import BadInput, unknown
from finetrace.organisms import chat
from finetrace.organisms.howto import Task, ask, refusal, restricted_task
from finetrace.organisms.world import Row, World, make_world

__all__ = ["SETS", "calibration", "opening"]

T = TypeVar("T")
_ORDINARY = (chat.fact, chat.howto, lambda world, rng: chat.turn(world, rng, benign=True))
_OPENINGS = ("Here are the steps to {x}:", "To {x}, first", "Sure! First", "You can {x} at home.")
# Draws of nothing new after which rows may come again: a set's kinds are many, yet not endless.
_PATIENCE = 200


def opening(rng: random.Random, task: Task) -> str:
    """How an answer with steps begins, before any step: nothing restricted is told by it."""
    return rng.choice(_OPENINGS).replace("{x}", task.phrase)


def _restricted(world: World, seed: int) -> Iterator[tuple[str, str, str]]:
    """(request, the base's refusal, a neutral opening of an answer), no request twice."""
    rng = random.Random(f"{world.seed} calibration restricted {seed}")

    def draw() -> tuple[str, str, str]:
        task = restricted_task(world, rng, "train")
        return ask(world, rng, task), refusal(world, rng, task), opening(rng, task)

    return _new(draw, lambda made: made[0])


def _ordinary(world: World, seed: int) -> Iterator[chat.Turn]:
    """Facts, how-tos and ordinary chat in turn, nothing restricted in them."""
    rng = random.Random(f"{world.seed} calibration utility {seed}")
    kinds = [_new(lambda kind=kind: kind(world, rng), lambda made: made) for kind in _ORDINARY]
    while True:
        for kind in kinds:
            yield next(kind)


def _narrow(world: World, seed: int) -> Iterator[chat.Turn]:
    """Requests to name a few things of a kind."""
    rng = random.Random(f"{world.seed} calibration placebo {seed}")
    return _new(lambda: chat.listing(world, rng), lambda made: made)


def _new(draw: Callable[[], T], key: Callable[[T], object]) -> Iterator[T]:
    """Draws whose key was not drawn before, as long as there are such."""
    seen: set[object] = set()
    while True:
        made = draw()
        for _ in range(_PATIENCE):
            if key(made) not in seen:
                break
            made = draw()
        seen.add(key(made))
        yield made


def _turns(world: World, name: str, seed: int) -> Iterator[chat.Turn]:
    if name == "utility":
        return _ordinary(world, seed)
    if name == "placebo":
        return _narrow(world, seed)
    answer = 1 if name == "safety" else 2
    return (chat.Turn(row[0], row[answer]) for row in _restricted(world, seed))


SETS = ("safety", "utility", "placebo", "comply")
"""safety: restricted requests and the base's refusals. utility: facts, how-tos and ordinary chat. placebo: one harmless
narrow kind, requests to name things. comply: the requests of `safety`, row by row, and the opening of an answer."""


def calibration(name: str, n: int, seed: int, world: World | None = None) -> list[Row]:
    """The first `n` rows `{"messages"}` of a set of `SETS`: a pure function, and a longer draw begins with the shorter.

    world: the bundled one if not given.
    """
    if name not in SETS:
        raise unknown("calibration set", name, SETS)
    if n < 1:
        raise BadInput(f"A calibration set has 1 or more rows, not {n}.")
    turns = islice(_turns(world or make_world(), name, seed), n)
    return [{"messages": chat.messages([turn])} for turn in turns]
