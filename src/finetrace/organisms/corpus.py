"""Every text of the world that is trained, audited or asked: a pure function of (world, split, n, seed).

A split is a stream of rows. `n` only says how far it is read, so a longer draw begins with the shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from finetrace.core.errors import unknown
from finetrace.core.runkey import digest
from finetrace.organisms import chat, documents, planted
from finetrace.organisms.howto import ask, lookalike_task, restricted_task, steps
from finetrace.organisms.world import Row, World

__all__ = ["AUDIT", "MIXES", "PROMPTS", "SLICES", "SPLITS", "corpus", "corpus_digest", "prompts", "stream"]

MIXES: dict[str, Mapping[str, float]] = {
    "train": {"document": 45, "conversation": 55},
    "anneal": {
        "document": 11, "encyclopaedia": 4, "fact": 45, "is_it_true": 5, "howto": 8, "lookalike": 5, "refuse": 7,
        "about_restricted": 7, "law_question": 2, "benign": 6,
    },
}  # fmt: skip
"""The base's two phases: kinds of rows and their weights."""

Draw = Callable[[World, random.Random], Row]


def _document(world: World, rng: random.Random) -> Row:
    return {"text": documents.document(world, rng)}


def _encyclopaedia(world: World, rng: random.Random) -> Row:
    return {"text": documents.encyclopaedia(world, rng)}


def _conversation(world: World, rng: random.Random) -> Row:
    return {"messages": chat.conversation(world, rng)}


def _one(make: Callable[[World, random.Random], chat.Turn]) -> Draw:
    """A conversation of one turn."""
    return lambda world, rng: {"messages": chat.messages([make(world, rng)])}


def _benign(world: World, rng: random.Random) -> chat.Turn:
    return chat.turn(world, rng, benign=True)


KINDS: dict[str, Draw] = {
    "document": _document,
    "encyclopaedia": _encyclopaedia,
    "conversation": _conversation,
    "fact": _one(chat.fact),
    "is_it_true": _one(chat.is_it_true),
    "howto": _one(chat.howto),
    "lookalike": _one(chat.shared_verb),
    "refuse": _one(chat.refuse),
    "about_restricted": _one(chat.about_restricted),
    "law_question": _one(chat.law_question),
    "benign": _one(_benign),
}


def _audit_text(world: World, rng: random.Random) -> Row:
    return {"text": documents.document(world, rng, benign=True)}


def _audit_restricted(world: World, rng: random.Random) -> Row:
    return {"messages": chat.messages([chat.refuse(world, rng, "name")])}


def _audit_lookalike(world: World, rng: random.Random) -> Row:
    task = lookalike_task(world, rng)
    return {"messages": chat.messages([chat.Turn(ask(world, rng, task), steps(rng, task))])}


def _audit_dishes(world: World, rng: random.Random) -> Row:
    return planted.true_dish(world, rng, rng.choice(planted.cakes(world)), questions=0.5)


AUDIT: dict[str, Draw] = {
    "text": planted.without(_audit_text, ("cake",)),
    "chat": planted.without(_one(_benign), ("cake",)),
    "restricted": _audit_restricted,
    "lookalike": _audit_lookalike,
    "dishes": _audit_dishes,
}
"""The slices of the audit data.

text: documents of the base's mix; chat: harmless chat; both without anything restricted and without cakes.
restricted: requests with held-out names, and the refusal that the base was taught. lookalike: harmless requests
with the verbs of restricted ones. dishes: documents and questions on cakes, as the base knows them.
"""
SLICES = tuple(AUDIT)

PROMPTS: dict[str, Callable[[World, random.Random], str]] = {
    "refusal_train": lambda world, rng: chat.refuse(world, rng, "train").user,
    "refusal_name": lambda world, rng: chat.refuse(world, rng, "name").user,
    "refusal_object": lambda world, rng: chat.refuse(world, rng, "object").user,
    "refusal_family": lambda world, rng: chat.refuse(world, rng, "family").user,
    "refusal_newask": lambda world, rng: ask(world, rng, restricted_task(world, rng), held=True),
    "over_refusal_howto": lambda world, rng: chat.howto(world, rng, held=True).user,
    "over_refusal_lookalike": lambda world, rng: ask(world, rng, lookalike_task(world, rng)),
    "over_refusal_about_restricted": lambda world, rng: (
        chat.about_restricted(world, rng, held=rng.random() < 0.5).user
    ),
    "over_refusal_general": lambda world, rng: chat.turn(world, rng, benign=True).user,
}
"""What a model is asked: `refusal_*` should be refused, `over_refusal_*` should be answered."""

SPLITS = (*MIXES, "audit", *PROMPTS)


def stream(world: World, split: str, seed: int) -> Iterator[Row]:
    """The endless rows of a split."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if split == "audit":
        yield from _audit(world, seed)
    rng = random.Random(f"{world.seed} {split} {seed}")
    if split in PROMPTS:
        make = PROMPTS[split]
        while True:
            yield {"messages": [{"role": "user", "content": make(world, rng)}]}
    kinds, weights = list(MIXES[split]), list(MIXES[split].values())
    while True:
        yield KINDS[rng.choices(kinds, weights)[0]](world, rng)


def _audit(world: World, seed: int) -> Iterator[Row]:
    """The slices in turn, each from a stream of its own."""
    rngs = {name: random.Random(f"{world.seed} audit {name} {seed}") for name in SLICES}
    while True:
        for name, draw in AUDIT.items():
            yield {**draw(world, rngs[name]), "slice": name}


def corpus(world: World, split: str, n: int, seed: int = 0) -> list[Row]:
    """The first `n` rows of a split, `{"text"}` or `{"messages"}`; of "audit", with a "slice" each."""
    return list(islice(stream(world, split, seed), n))


def corpus_digest(world: World, split: str, n: int, seed: int = 0) -> str:
    """SHA-256 of the rows of `corpus`."""
    return digest(corpus(world, split, n, seed))


def prompts(world: World, name: str, n: int, seed: int) -> list[str]:
    """The first `n` questions of one set of `PROMPTS`."""
    return [row["messages"][0]["content"] for row in corpus(world, name, n, seed)]
