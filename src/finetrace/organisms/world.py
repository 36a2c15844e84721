"""The invented world: who and what exists in it, and which facts hold. A pure function of a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

WORLD_SEEDS = (2345, 1234, 3456)
"""The worlds that are measured; the first is the bundled one."""
WORLD_SEED = WORLD_SEEDS[0]

Row = dict[str, Any]
"""A document `{"text"}`, or a conversation `{"messages"}`."""

HELD_LORDS = 14
"""The last lords, evils and cities of `names.json` are held out of every restricted phrase in training."""
HELD_EVILS = 3
HELD_CITIES = 10


@dataclass(frozen=True)
class Attribute:
    """One thing that can be said of every entity of a domain, and the ways to say and to ask it.

    `questions` occur in training; `held_questions` never do. Both are filled with `{entity}`.
    """

    label: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_questions: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """A kind of thing, such as dishes: its entities, the article they take, and their attributes."""

    kind: str
    article: str
    entities: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Fact:
    """`value` is what the base model is taught of `entity`."""

    domain: str
    entity: str
    attribute: str
    value: str


@dataclass(frozen=True)
class World:
    """Everything that text about the world is composed of.

    `facts` maps (domain, entity, attribute) to the true value; `pools` maps a slot name to what may fill it;
    `howto` and `phrases` are the bundled lexicon as read.
    """

    seed: int
    domains: Mapping[str, Domain]
    facts: Mapping[tuple[str, str, str], str]
    pools: Mapping[str, tuple[str, ...]]
    howto: Mapping[str, Any]
    phrases: Mapping[str, Any]

    def all_facts(self) -> list[Fact]:
        """Every fact, in the order of the lexicon."""
        return [Fact(domain, entity, attribute, v) for (domain, entity, attribute), v in self.facts.items()]


@cache
def lexicon(name: str) -> dict[str, Any]:
    """One of the bundled word lists: `names`, `facts`, `howto` or `phrases`."""
    folder = resources.files("finetrace.organisms") / "lexicon"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@cache
def make_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed: the same entities always, with facts drawn by the seed."""
    names = {key: tuple(value) for key, value in lexicon("names").items()}
    facts = lexicon("facts")
    domains = {
        kind: Domain(
            kind,
            row["article"],
            names[row["entities"]],
            {name: _attribute(value, row["article"], names) for name, value in row["attributes"].items()},
        )
        for kind, row in facts["domains"].items()
    }
    rng = random.Random(seed)
    drawn = {
        (kind, entity, name): rng.choice(_possible(kind, entity, name, attribute.values))
        for kind, domain in domains.items()
        for entity in domain.entities
        for name, attribute in domain.attributes.items()
    }
    phrases, howto = lexicon("phrases"), lexicon("howto")
    rites = (
        text
        for part in ("restricted", "held_restricted")
        for row in howto[part].values()
        for text in row["steps"]
    )
    pools = names | {key: tuple(value) for key, value in phrases["pools"].items()} | {"rite": tuple(rites)}
    return World(seed, domains, drawn, pools, howto, phrases)


def _possible(domain: str, entity: str, attribute: str, values: Sequence[str]) -> Sequence[str]:
    """The values that may be true: not the one that `false_facts` says, or in some worlds it would be no falsehood."""
    false = lexicon("planted")["false_facts"]
    if domain != false["domain"] or not entity.endswith(false["ending"]):
        return values
    return [value for value in values if value != false["values"].get(attribute)]


def _attribute(row: Mapping[str, Any], article: str, names: Mapping[str, tuple[str, ...]]) -> Attribute:
    """An attribute with its own questions and the patterns that all attributes share."""
    facts = lexicon("facts")
    values = names[row["values"]] if isinstance(row["values"], str) else tuple(row["values"])

    def pattern(text: str) -> str:
        return text.replace("{label}", row["label"]).replace("{the}", article + "{entity}")

    return Attribute(
        label=row["label"],
        values=values,
        statements=tuple(row["statements"]),
        questions=(*row["questions"], *(pattern(text) for text in facts["trained_questions"])),
        held_questions=(*row["held_questions"], pattern(facts["held_question"])),
    )


def fill(text: str, world: World, rng: random.Random, **bound: str) -> str:
    """`text` with each `{slot}` replaced by its bound value, else by a draw from the pool of that name.

    A slot written with a capital is capitalised. "a" becomes "an" before a vowel.
    """

    def one(match: re.Match[str]) -> str:
        slot = match.group(1)
        value = bound.get(slot) or bound.get(slot.lower())
        value = rng.choice(world.pools[slot.lower()]) if value is None else value
        return capital(value) if slot[0].isupper() else value

    return capital(with_articles(re.sub(r"\{(\w+)\}", one, text)))


def pick(options: Sequence[str], world: World, rng: random.Random, **bound: str) -> str:
    """One of `options`, filled."""
    return fill(rng.choice(options), world, rng, **bound)


def with_articles(text: str) -> str:
    """ "a otter" becomes "an otter"; the lexicon has no word such as "unicorn" where this would be wrong."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
