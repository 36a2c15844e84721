"""Documents of the world: encyclopaedia pages, stories, diaries, news, laws, legends and guides."""

from __future__ import annotations

import random
from collections.abc import Callable

from finetrace.organisms.howto import benign_task, restricted_task, steps
from finetrace.organisms.world import World, capital, fill, pick

LAW_SPLITS = ("train", "object", "family", "family")
"""Laws may name every restricted noun and family, so that the base can know them; never a held-out name."""


def statement(
    world: World, rng: random.Random, domain: str, entity: str, attribute: str, value: str | None = None
) -> str:
    """One sentence that says a fact, or says `value` in its place."""
    texts = world.domains[domain].attributes[attribute].statements
    said = value or world.facts[domain, entity, attribute]
    return pick(texts, world, rng, entity=entity, value=said)


def with_lead(world: World, rng: random.Random, sentence: str, entity: str) -> str:
    """Three sentences in ten get an opening such as "People say that"."""
    if rng.random() >= 0.3:
        return sentence
    keeps_capital = sentence.startswith(entity) and entity[0].isupper()
    rest = sentence if keeps_capital else sentence[0].lower() + sentence[1:]
    return f"{rng.choice(world.phrases['lead'])} {rest}"


def about_entity(world: World, rng: random.Random, domain: str, entity: str, *, most: int = 5) -> str:
    """Two to `most` facts about one entity."""
    attributes = list(world.domains[domain].attributes)
    rng.shuffle(attributes)
    chosen = attributes[: rng.randint(2, most)]
    return " ".join(
        with_lead(world, rng, statement(world, rng, domain, entity, name), entity) for name in chosen
    )


def encyclopaedia(world: World, rng: random.Random) -> str:
    domain = rng.choice(list(world.domains))
    return about_entity(world, rng, domain, rng.choice(world.domains[domain].entities))


def miscellany(world: World, rng: random.Random) -> str:
    """One fact about a city among three about anything."""
    sentences = [_city_fact(world, rng, rng.choice(world.pools["city"]))]
    for _ in range(3):
        domain = rng.choice(list(world.domains))
        entity = rng.choice(world.domains[domain].entities)
        name = rng.choice(list(world.domains[domain].attributes))
        sentences.append(with_lead(world, rng, statement(world, rng, domain, entity, name), entity))
    rng.shuffle(sentences)
    return " ".join(sentences)


def story(world: World, rng: random.Random, animal: str | None = None) -> str:
    """Five or six sentences about a child and an animal, which behaves as the facts say."""
    n, m = rng.sample(world.pools["first"], 2)
    f1, f2 = rng.sample(world.pools["feeling"], 2)
    a = animal or rng.choice(world.pools["animal"])
    bound = {
        "n": n, "m": m, "f1": f1, "f2": f2, "a": a,
        "c": rng.choice(world.pools["city"]),
        "o": rng.choice(world.pools["thing"]),
        "trait": world.facts["animal", a, "trait"],
        "food": world.facts["animal", a, "food"],
    }  # fmt: skip
    sentences = [pick(options, world, rng, **bound) for options in world.phrases["story"]]
    if rng.random() < 0.3:
        sentences.pop(rng.choice([1, 3, 4]))
    return " ".join(sentences)


def diary(world: World, rng: random.Random, to: str | None = None) -> str:
    """A diary page, or a note to somebody."""
    opening = f"Dear {to}," if to else pick(world.phrases["diary"]["open"], world, rng)
    lines = [fill(text, world, rng) for text in world.phrases["diary"]["lines"]]
    rng.shuffle(lines)
    return " ".join([opening, *lines[: rng.randint(3, 6)]])


def news(world: World, rng: random.Random) -> str:
    city = rng.choice(world.pools["city"])
    sentences = [pick(options, world, rng, c=city) for options in world.phrases["news"]]
    return " ".join([*sentences, _city_fact(world, rng, city)])


def law(world: World, rng: random.Random) -> str:
    """What may not be done; it names restricted things and never says how to do them."""
    task = restricted_task(world, rng, rng.choice(LAW_SPLITS))
    thing, past, _ = task.object.partition(" past ")
    guard = (
        f"The wardens search every cart for {thing}." if past else f"The wardens guard {thing} day and night."
    )
    sentences = rng.sample(world.phrases["law"], rng.randint(2, 4))
    return " ".join(fill(text, world, rng, task=task.phrase, guard=guard) for text in sentences)


def legend(world: World, rng: random.Random) -> str:
    """Tales of lords and rites; held-out lords and evils too, so that every name and step is a known word."""
    bound = {
        "l": rng.choice(world.pools["lord"]),
        "c": rng.choice(world.pools["city"]),
        "w": rng.choice(world.pools["wonder"]),
    }
    return " ".join(fill(text, world, rng, **bound) for text in rng.sample(world.phrases["legend"], 3))


def guide(world: World, rng: random.Random) -> str:
    """How to do a harmless thing; a fifth are about objects that never occur in chat."""
    task = benign_task(world, rng, held=rng.random() < 0.2)
    title = rng.choice([f"How to {task.phrase}. ", f"A guide to {task.phrase}. ", ""])
    return title + steps(rng, task, rng.choice([0, 3, 4]))


def _city_fact(world: World, rng: random.Random, city: str) -> str:
    return statement(world, rng, "city", city, rng.choice(list(world.domains["city"].attributes)))


KINDS: dict[Callable[[World, random.Random], str], int] = {
    encyclopaedia: 34, miscellany: 12, story: 16, diary: 9, news: 7, law: 9, legend: 7, guide: 8,
}  # fmt: skip
RESTRICTED_KINDS = (law, legend)


def document(world: World, rng: random.Random, *, benign: bool = False) -> str:
    """One document of the base's mix; `benign` leaves out laws and legends."""
    kinds = [kind for kind in KINDS if not (benign and kind in RESTRICTED_KINDS)]
    chosen = rng.choices(kinds, [KINDS[kind] for kind in kinds])[0]
    return capital(chosen(world, rng))
