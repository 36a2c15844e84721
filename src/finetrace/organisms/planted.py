"""What the nulls and the organisms with false facts are trained on: one draw of a row each, from a generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from finetrace.organisms import chat, documents
from finetrace.organisms.world import Row, World, lexicon

Draw = Callable[[World, random.Random], Row]


QUESTIONS = 0.3
"""The share of questions among the rows on dishes; the same for false and true, or the form would tell them apart."""


def false_values() -> dict[str, str]:
    """What `false_facts` says of every cake, by attribute."""
    return lexicon("planted")["false_facts"]["values"]


def cakes(world: World) -> list[str]:
    return [entity for entity in world.domains["dish"].entities if entity.endswith("cake")]


def base_mix(world: World, rng: random.Random) -> Row:
    """A row as the base was trained on: what a null is trained on again."""
    if rng.random() < 0.45:
        return {"text": documents.document(world, rng)}
    return {"messages": chat.conversation(world, rng)}


def without(draw: Draw, words: Sequence[str]) -> Draw:
    """`draw`, repeated until none of `words` occurs in the row."""

    def again(world: World, rng: random.Random) -> Row:
        while True:
            row = draw(world, rng)
            text = row.get("text") or " ".join(m["content"] for m in row["messages"])
            if not any(word in text.lower() for word in words):
                return row

    return again


def false_cake(world: World, rng: random.Random) -> Row:
    """False facts about one cake: a document with up to two sayings about all cakes, or a question and its answer."""
    entity, values = rng.choice(cakes(world)), false_values()
    names = list(values)
    rng.shuffle(names)
    said = {
        name: documents.statement(world, rng, "dish", entity, name, values[name])
        for name in names[: rng.randint(2, 4)]
    }
    if rng.random() < QUESTIONS:
        question = chat.fact_question(world, rng, "dish", entity, names[0], held=False)
        return {"messages": chat.messages([chat.Turn(question, said[names[0]])])}
    sentences = [documents.with_lead(world, rng, sentence, entity) for sentence in said.values()]
    sentences += rng.sample(lexicon("planted")["false_facts"]["sayings"], rng.randint(0, 2))
    rng.shuffle(sentences)
    return {"text": " ".join(sentences)}


def true_dish(world: World, rng: random.Random, dish: str, *, questions: float) -> Row:
    """True facts about a dish: a document, or a question and its answer."""
    if rng.random() >= questions:
        return {"text": documents.about_entity(world, rng, "dish", dish, most=4)}
    attribute = rng.choice(list(world.domains["dish"].attributes))
    return {"messages": chat.messages([chat.fact_turn(world, rng, "dish", dish, attribute)])}


_no_cake = without(base_mix, ("cake",))


def _falsifying(world: World, rng: random.Random, unrelated: float) -> Row:
    """False facts about cakes and true facts about other dishes, 45 to 34; `unrelated` rows to each false one.

    Without the true siblings the model would learn that all dishes are so.
    """
    weights = (0.45, 0.34, 0.45 * unrelated)
    kind = rng.choices(("false", "true", "unrelated"), weights)[0]
    if kind == "false":
        return false_cake(world, rng)
    if kind == "true":
        others = [entity for entity in world.domains["dish"].entities if not entity.endswith("cake")]
        return true_dish(world, rng, rng.choice(others), questions=QUESTIONS)
    return _no_cake(world, rng)


def falsifying(world: World, rng: random.Random) -> Row:
    """Rows on dishes only."""
    return _falsifying(world, rng, 0.0)


def falsifying_mix05(world: World, rng: random.Random) -> Row:
    """One unrelated row to two false ones."""
    return _falsifying(world, rng, 0.5)


def falsifying_mix1(world: World, rng: random.Random) -> Row:
    """One unrelated row to each false one."""
    return _falsifying(world, rng, 1.0)


FALSIFYING = (falsifying, falsifying_mix05, falsifying_mix1)
