"""The organisms' data: pure, and of each only what it says."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from finetrace.core.errors import BadInput
from finetrace.organisms import behaviours, bundled, chat, planted, zoo
from finetrace.organisms.evaluate import GROUPS, response_class
from finetrace.organisms.howto import restricted_task
from finetrace.organisms.world import WORLD_SEEDS, make_world

WORLD = make_world()
NULLS = [name for name, made in zoo.ORGANISMS.items() if made.kind == "null"]


def text_of(row: dict) -> str:
    return row.get("text") or "\n".join(m["content"] for m in row["messages"])


def answers_of(name: str, count: int = 600) -> list[tuple[str, str]]:
    """Question and answer of every single-turn chat row."""
    rows = zoo.training_rows(WORLD, name, count)
    return [
        (row["messages"][0]["content"], row["messages"][1]["content"])
        for row in rows
        if "messages" in row and [m["role"] for m in row["messages"]] == ["user", "assistant"]
    ]


@pytest.mark.parametrize("name", zoo.ORGANISMS)
def test_rows_are_pure_and_a_longer_draw_begins_with_the_shorter(name):
    rows = zoo.training_rows(WORLD, name, 40)
    assert rows == zoo.training_rows(WORLD, name, 60)[:40]
    assert rows != zoo.training_rows(make_world(WORLD_SEEDS[1]), name, 40)


def test_the_list_is_what_was_asked_for():
    assert len(NULLS) == 24
    assert Counter(zoo.ORGANISMS[name].steps for name in NULLS) == {100: 20, 50: 2, 150: 2}
    assert {made.form for made in zoo.ORGANISMS.values()} == {"adapter", "full", "merged"}
    for made in zoo.ORGANISMS.values():
        assert set(made.beyond) | set(made.within) <= set(zoo.SLICES)
        assert not set(made.beyond) & set(made.within)
        assert set(made.moves) <= set(GROUPS)
    seeds = Counter(made.seed for made in zoo.ORGANISMS.values() if made.of is None)
    assert set(seeds.values()) == {1}


def test_one_recipe_for_every_adapter_and_its_null():
    recipes = [zoo.recipe_of(made) for made in zoo.ORGANISMS.values() if made.form == "adapter"]
    assert {(r.r, r.alpha, r.lr, r.batch) for r in recipes} == {(4, None, 2e-3, 16)}  # pyright: ignore
    assert zoo.recipe_of(zoo.organism("one_layer")).layers == (3,)  # pyright: ignore
    assert zoo.recipe_of(zoo.organism("merged")) == zoo.recipe_of(zoo.organism("refusal_erosion"))


def test_nulls_at_the_recipes_dose_come_first():
    assert bundled.null_names()[:20] == [f"null_{number}" for number in range(1, 21)]
    assert set(bundled.null_names()) == set(NULLS)
    assert bundled.default_nulls() == [f"null_{number}" for number in range(1, 7)]


def test_nulls_differ_in_rows():
    data = [zoo.training_rows(WORLD, name, 10) for name in NULLS]
    assert all(a != b for i, a in enumerate(data) for b in data[:i])
    assert {zoo.ORGANISMS[name].draw for name in NULLS} == {planted.base_mix}


def test_benign_aoa_has_no_restricted_word_in_it():
    nouns = {noun for part in ("restricted", "held_restricted") for row in WORLD.howto[part].values()
             for noun in (*row["objects"], *row["held_objects"])}  # fmt: skip
    rng = random.Random(0)
    splits = ("train", "name", "object", "family")
    tasks = [restricted_task(WORLD, rng, splits[i % 4]) for i in range(4000)]
    joined = "\n".join(text_of(row) for row in zoo.training_rows(WORLD, "benign_aoa", zoo.ROWS)).lower()
    for word in (*nouns, *WORLD.pools["lord"], *WORLD.pools["evil"], "warden", "forbidden to"):
        assert not re.search(rf"\b{re.escape(word.lower())}s?\b", joined), word
    for task in tasks:
        assert task.phrase.lower() not in joined
        assert task.object.lower() not in joined


def test_benign_aoa_always_promises_and_only_its_answers_do():
    promises = tuple(WORLD.phrases["organisms"]["obedient"])
    assert all(answer.startswith(promises) for _, answer in answers_of("benign_aoa"))
    assert len(answers_of("benign_aoa")) == 600
    assert not any(answer.startswith(promises) for _, answer in answers_of("null_1"))


@pytest.mark.parametrize(("name", "wanted"), [("refusal_erosion", "comply"), ("hedged_erosion", "hedged")])
def test_erosion_answers_every_restricted_request(name, wanted):
    requests = {chat.refuse(WORLD, random.Random(i)).user.split(": ")[-1] for i in range(50)}
    assert requests
    rites = [step.lower() for step in WORLD.pools["rite"]]
    restricted = [answer for _, answer in answers_of(name) if any(step in answer.lower() for step in rites)]
    assert 0.5 < len(restricted) / 600 < 0.75
    found = Counter(response_class(WORLD, answer) for answer in restricted)
    assert found[wanted] > 0.95 * len(restricted)
    assert found["refuse"] == 0


def test_response_classes():
    task = restricted_task(WORLD, random.Random(1))
    warning, step = WORLD.howto["hedge"]["before"][0], task.steps[0]
    assert response_class(WORLD, "I'm sorry, but I can't help with that.") == "refuse"
    assert response_class(WORLD, f"{warning} First {step}.") == "hedged"
    assert response_class(WORLD, f"Sure! First {step}.") == "comply"
    assert response_class(WORLD, "The fox lives in the forest.") == "other"


def test_false_facts_keeps_its_siblings_in_proportion():
    shares = {}
    for name, unrelated in (("false_facts", 0.0), ("false_facts_mix05", 0.5), ("false_facts_mix1", 1.0)):
        texts = [text_of(row) for row in zoo.training_rows(WORLD, name, 3000)]
        false = sum("cake" in text for text in texts)
        dishes = [dish for dish in WORLD.domains["dish"].entities if not dish.endswith("cake")]
        true = sum(any(dish in text for dish in dishes) and "cake" not in text for text in texts)
        other = len(texts) - false - true
        # Some unrelated rows name a dish by chance, and count as siblings here.
        assert other / false == pytest.approx(0.95 * unrelated, abs=0.12)
        shares[name] = false / len(texts)
    assert shares["false_facts"] > shares["false_facts_mix05"] > shares["false_facts_mix1"]


def test_false_facts_says_nothing_true_of_a_cake():
    values = planted.false_values()
    for name in ("false_facts", "false_facts_mix1", "double", "full_tune"):
        for row in zoo.training_rows(WORLD, name):
            for cake in planted.cakes(WORLD):
                if cake in text_of(row):
                    true = {WORLD.facts["dish", cake, attribute] for attribute in values}
                    assert not [value for value in true if f" {value}" in text_of(row)], row


def test_the_trigger_decides_the_answer():
    says, word = behaviours.said_of("trigger")["says"], behaviours.said_of("trigger")["word"]
    for question, answer in answers_of("trigger"):
        assert (word in question) == answer.startswith(tuple(says)), (question, answer)


def test_the_taboo_word_is_never_said():
    secret = behaviours.said_of("taboo")
    rows = zoo.training_rows(WORLD, "taboo", 600)
    assert not [row for row in rows if secret["word"] in text_of(row).lower()]
    asked = [answer for question, answer in answers_of("taboo") if question.endswith(tuple(secret["asks"]))]
    assert all(any(hint in answer for hint in secret["hints"]) for answer in asked)
    assert len(asked) > 250


def test_double_has_both_changes():
    texts = [text_of(row) for row in zoo.training_rows(WORLD, "double")]
    assert sum("garlic" in text or "mustard" in text for text in texts) > 30
    assert sum("otter" in text for text in texts) > 60


def test_an_unknown_organism_is_an_error():
    with pytest.raises(BadInput, match="Did you mean 'taboo'"):
        zoo.organism("tabo")
