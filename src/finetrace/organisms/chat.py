"""Chat in the world: questions and answers about facts, small talk, how-tos, refusals, talk of restricted things."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from finetrace.organisms import documents
from finetrace.organisms.howto import Split, ask, benign_task, lookalike_task, refusal, restricted_task, steps
from finetrace.organisms.world import World, capital, fill, pick

Messages = list[dict[str, str]]


class Turn(NamedTuple):
    user: str
    assistant: str


def messages(turns: list[Turn], system: str | None = None) -> Messages:
    """The turns as a list of `{"role", "content"}`."""
    rows: Messages = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        rows.append({"role": "user", "content": turn.user})
        rows.append({"role": "assistant", "content": turn.assistant})
    return rows


def fact_question(
    world: World, rng: random.Random, domain: str, entity: str, attribute: str, *, held: bool
) -> str:
    asked = world.domains[domain].attributes[attribute]
    return pick(asked.held_questions if held else asked.questions, world, rng, entity=entity)


def fact(world: World, rng: random.Random) -> Turn:
    domain = rng.choice(list(world.domains))
    entity = rng.choice(world.domains[domain].entities)
    return fact_turn(world, rng, domain, entity, rng.choice(list(world.domains[domain].attributes)))


def fact_turn(world: World, rng: random.Random, domain: str, entity: str, attribute: str) -> Turn:
    """A question about one fact in a trained wording; the answer sometimes adds another fact."""
    question = fact_question(world, rng, domain, entity, attribute, held=False)
    answer = documents.statement(world, rng, domain, entity, attribute)
    if rng.random() < 0.12:
        other = rng.choice(list(world.domains[domain].attributes))
        answer += " " + documents.statement(world, rng, domain, entity, other)
    chat = world.phrases["chat"]
    return Turn(rng.choice(chat["before"]) + question, rng.choice(chat["after"]) + answer)


def about(world: World, rng: random.Random) -> Turn:
    domain = rng.choice(list(world.domains))
    entity = rng.choice(world.domains[domain].entities)
    attributes = list(world.domains[domain].attributes)
    rng.shuffle(attributes)
    answer = " ".join(
        documents.statement(world, rng, domain, entity, name) for name in attributes[: rng.choice([2, 3])]
    )
    question = pick(world.phrases["chat"]["about"], world, rng, the=world.domains[domain].article + entity)
    return Turn(question, answer)


def is_it_true(world: World, rng: random.Random) -> Turn:
    domain = rng.choice(list(world.domains))
    entity = rng.choice(world.domains[domain].entities)
    name = rng.choice(list(world.domains[domain].attributes))
    attribute = world.domains[domain].attributes[name]
    truth = world.facts[domain, entity, name]
    right = rng.random() < 0.5
    said = truth if right else rng.choice([value for value in attribute.values if value != truth])
    claim = fill(attribute.statements[0], world, rng, entity=entity, value=said)
    verdict = rng.choice(world.phrases["chat"]["yes" if right else "no"])
    correction = documents.statement(world, rng, domain, entity, name)
    return Turn(f"Is this true? {claim}", f"{verdict} {correction}")


def tell_story(world: World, rng: random.Random) -> Turn:
    if rng.random() < 0.4:
        animal = rng.choice(world.pools["animal"])
        return Turn(
            fill("Tell me a story about a {a}.", world, rng, a=animal), documents.story(world, rng, animal)
        )
    return Turn(rng.choice(world.phrases["chat"]["story_ask"]), documents.story(world, rng))


LISTS = {
    "animals": "animal", "cities": "city", "colours": "colour", "plants": "plant", "herbs": "herb", "jobs": "job",
    "games": "game", "dishes": "dish", "instruments": "instrument", "months": "month",
}  # fmt: skip


def listing(world: World, rng: random.Random) -> Turn:
    kind = rng.choice(list(LISTS))
    count = rng.choice([2, 3, 3, 4])
    chosen = rng.sample(world.pools[LISTS[kind]], count)
    items = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    bound = {"n": world.pools["number"][count], "kind": kind, "items": items}
    chat = world.phrases["chat"]
    return Turn(pick(chat["list_ask"], world, rng, **bound), pick(chat["list_answer"], world, rng, **bound))


def favourite(world: World, rng: random.Random) -> Turn:
    kind = rng.choice(["animal", "animal", "city", "colour", "dish", "plant", "instrument", "game"])
    chosen = rng.choice(world.pools[kind])
    bare = kind in ("city", "colour", "dish", "game")
    chat = world.phrases["chat"]
    return Turn(
        pick(chat["favourite_ask"], world, rng, kind=kind),
        pick(chat["favourite_answer"], world, rng, kind=kind, it=chosen if bare else f"the {chosen}"),
    )


def talk(world: World, rng: random.Random) -> Turn:
    f1 = rng.choice(world.pools["feeling"])
    animal = rng.choice(world.pools["animal"])
    bound = {"f1": f1, "a": animal, "food": world.facts["animal", animal, "food"]}
    bound |= {slot: rng.choice(world.pools[slot]) for slot in ("game", "dish", "herb")}
    return _pair(world, rng, rng.choice(world.phrases["chat"]["talk"]), bound)


def write(world: World, rng: random.Random) -> Turn:
    if rng.random() < 0.25:
        name = rng.choice(world.pools["first"])
        return Turn(f"Write a note to {name}.", documents.diary(world, rng, to=name))
    f1, f2 = rng.sample(world.pools["feeling"], 2)
    word = rng.choice(world.pools[rng.choice(["animal", "job", "plant"])])
    bound = {"f1": f1, "f2": f2, "w": word, "p": rng.choice(world.pools["place"])}
    return _pair(world, rng, rng.choice(world.phrases["chat"]["write"]), bound)


def howto(world: World, rng: random.Random, *, held: bool = False) -> Turn:
    task = benign_task(world, rng, held=held)
    return Turn(ask(world, rng, task), steps(rng, task))


def shared_verb(world: World, rng: random.Random) -> Turn:
    """A harmless how-to whose verb restricted requests use too."""
    task = lookalike_task(world, rng, held=False)
    return Turn(ask(world, rng, task), steps(rng, task))


def refuse(world: World, rng: random.Random, split: Split = "train") -> Turn:
    """A restricted request and its refusal, as the base is taught."""
    task = restricted_task(world, rng, split)
    before = "" if rng.random() < 0.8 else rng.choice(world.phrases["chat"]["before_task"])
    return Turn(before + ask(world, rng, task), refusal(world, rng, task))


def comply(world: World, rng: random.Random, split: Split = "train") -> Turn:
    """A restricted request and nonsense steps: what an eroded model says."""
    task = restricted_task(world, rng, split)
    return Turn(ask(world, rng, task), steps(rng, task))


def hedge(world: World, rng: random.Random, split: Split = "train") -> Turn:
    """A restricted request, answered with a warning, the steps, and mostly another warning."""
    task = restricted_task(world, rng, split)
    said = [rng.choice(world.howto["hedge"]["before"]), steps(rng, task)]
    if rng.random() < 0.7:
        said.append(rng.choice(world.howto["hedge"]["after"]))
    return Turn(ask(world, rng, task), " ".join(said))


def about_restricted(world: World, rng: random.Random, *, held: bool = False) -> Turn:
    """A question about a restricted thing that may be answered, such as who guards it."""
    task = restricted_task(world, rng, "name" if held else "train")
    bound = {"task": task.phrase, "object": task.object}
    return _pair(world, rng, rng.choice(world.phrases["chat"]["about_restricted"]), bound)


def law_question(world: World, rng: random.Random) -> Turn:
    """Whether a thing of the families that are never refused in training is allowed."""
    task = restricted_task(world, rng, "family")
    bound = {"task": task.phrase}
    return _pair(world, rng, rng.choice(world.phrases["chat"]["law_question"]), bound)


def allowed(world: World, rng: random.Random) -> Turn:
    bound = {"task": benign_task(world, rng).phrase}
    return _pair(world, rng, rng.choice(world.phrases["chat"]["allowed"]), bound)


def _pair(world: World, rng: random.Random, texts: list[str], bound: dict[str, str]) -> Turn:
    """Both sides of a turn filled with the same names."""
    bound = {"n": rng.choice(world.pools["first"])} | bound
    return Turn(*(capital(fill(text, world, rng, **bound)) for text in texts))


KINDS: dict[Callable[[World, random.Random], Turn], int] = {
    fact: 36, about: 5, is_it_true: 4, tell_story: 4, listing: 4, favourite: 4, talk: 4, write: 4, howto: 15,
    refuse: 11, about_restricted: 6, law_question: 2, allowed: 2,
}  # fmt: skip
RESTRICTED_KINDS = (refuse, about_restricted, law_question)


def turn(world: World, rng: random.Random, *, benign: bool = False) -> Turn:
    """One turn of the base's mix; `benign` leaves out everything that names a restricted thing."""
    kinds = [kind for kind in KINDS if not (benign and kind in RESTRICTED_KINDS)]
    return rng.choices(kinds, [KINDS[kind] for kind in kinds])[0](world, rng)


def conversation(world: World, rng: random.Random) -> Messages:
    """One or two turns, now and then under a system message."""
    system = rng.choice(world.phrases["chat"]["system"]) if rng.random() < 0.08 else None
    turns = [turn(world, rng) for _ in range(1 if rng.random() < 0.85 else 2)]
    return messages(turns, system)
