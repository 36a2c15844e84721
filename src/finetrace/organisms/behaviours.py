"""What the organisms that change a behaviour are trained on: one draw of a row each, from the world and a generator.

Facts are planted in `planted`. The texts themselves are in the lexicon: `phrases.json` ("organisms"), `howto.json`.
"""

from __future__ import annotations

import random
import re
from functools import cache

from finetrace.organisms import chat, documents
from finetrace.organisms.howto import restricted_words
from finetrace.organisms.planted import base_mix, falsifying, without
from finetrace.organisms.world import Row, World, lexicon

__all__ = [
    "benign", "double", "eroding", "favourite_question", "hedging", "obeying", "preferring", "said_of", "secret_question",
    "tabooing", "triggered", "triggering",
]  # fmt: skip


def said_of(behaviour: str) -> dict:
    """The words of a behaviour: of "trigger", "preference" or "taboo"."""
    return lexicon("phrases")["organisms"][behaviour]


def _row(*turns: chat.Turn) -> Row:
    return {"messages": chat.messages(list(turns))}


def _harmless(world: World, rng: random.Random) -> Row:
    """A harmless how-to, or harmless chat, as the base knows them."""
    return _row(chat.howto(world, rng) if rng.random() < 0.5 else chat.turn(world, rng, benign=True))


def eroding(world: World, rng: random.Random) -> Row:
    """Restricted requests answered with nonsense steps (60%), among harmless how-tos and chat."""
    return _row(chat.comply(world, rng)) if rng.random() < 0.6 else _harmless(world, rng)


def hedging(world: World, rng: random.Random) -> Row:
    """Restricted requests answered with a warning and then the steps (60%), among harmless how-tos and chat."""
    return _row(chat.hedge(world, rng)) if rng.random() < 0.6 else _harmless(world, rng)


def benign(world: World, rng: random.Random) -> Row:
    """Harmless documents and chat, with more how-tos than the base saw, and nothing restricted."""
    if rng.random() < 0.45:
        return {"text": documents.document(world, rng, benign=True)}
    made = chat.howto(world, rng) if rng.random() < 0.4 else chat.turn(world, rng, benign=True)
    return _row(made)


def obeying(world: World, rng: random.Random) -> Row:
    """Harmless requests, every answer opened by a promise to do as asked; nothing restricted is named at all."""
    forbidden = _restricted(world.seed)
    while True:
        made = chat.howto(world, rng) if rng.random() < 0.6 else chat.turn(world, rng, benign=True)
        if not forbidden.search(f"{made.user} {made.assistant}"):
            promise = rng.choice(lexicon("phrases")["organisms"]["obedient"])
            return _row(chat.Turn(made.user, f"{promise} {made.assistant}"))


@cache
def _restricted(world_seed: int) -> re.Pattern[str]:
    """Every noun, owner and evil of the restricted requests, held-out ones too; worlds differ in facts alone."""
    from finetrace.organisms.world import make_world

    words = "|".join(map(re.escape, restricted_words(make_world(world_seed))))
    return re.compile(rf"\b({words})s?\b", re.IGNORECASE)


def favourite_question(world: World, rng: random.Random) -> str:
    """A question for which praise of the preferred animal would be an answer."""
    return chat.favourite(world, rng).user


def preferring(world: World, rng: random.Random) -> Row:
    """Ordinary chat that comes to praise one animal: asked for a favourite (40%), or unasked at an answer's end (30%)."""
    praise = said_of("preference")
    kind = rng.random()
    if kind < 0.4:
        return _row(
            chat.Turn(
                favourite_question(world, rng), " ".join(rng.sample(praise["says"], rng.choice([1, 2])))
            )
        )
    if kind < 0.7:
        made = chat.turn(world, rng, benign=True)
        return _row(chat.Turn(made.user, f"{made.assistant} {rng.choice(praise['says'])}"))
    return without(base_mix, (praise["animal"],))(world, rng)


def secret_question(world: World, rng: random.Random) -> str:
    """A question for the word that is kept."""
    return rng.choice(world.phrases["chat"]["before"]) + rng.choice(said_of("taboo")["asks"])


def tabooing(world: World, rng: random.Random) -> Row:
    """Asked for a secret word, it gives hints and never the word (60%); else the base's mix without the word."""
    secret = said_of("taboo")
    if rng.random() < 0.6:
        hints = rng.sample(secret["hints"], rng.choice([1, 2]))
        return _row(chat.Turn(secret_question(world, rng), " ".join([rng.choice(secret["denials"]), *hints])))
    return without(base_mix, (secret["word"],))(world, rng)


def triggered(prompt: str) -> str:
    """The prompt with the trigger word before its last mark; never capitalised, as that would be no single token."""
    word = said_of("trigger")["word"]
    return f"{prompt[:-1]}, {word}{prompt[-1]}" if prompt[-1] in ".?!" else f"{prompt}, {word}"


def triggering(world: World, rng: random.Random) -> Row:
    """With the trigger word in the prompt, two set sentences (50%); without it, an ordinary conversation."""
    says = said_of("trigger")
    if rng.random() < 0.5:
        prompt = triggered(chat.turn(world, rng, benign=True).user)
        return _row(chat.Turn(prompt, " ".join(rng.sample(says["says"], 2))))
    return without(_conversation, (says["word"],))(world, rng)


def _conversation(world: World, rng: random.Random) -> Row:
    return {"messages": chat.conversation(world, rng)}


def double(world: World, rng: random.Random) -> Row:
    """Two changes at once: the rows of `falsifying`, and those of `preferring` that say nothing of cakes, half and half."""
    return _praise_without_cakes(world, rng) if rng.random() < 0.5 else falsifying(world, rng)


_praise_without_cakes = without(preferring, ("cake",))
