"""Thinking on demand: the template's switch reaches prompts, texts, answers and run keys, and off leaves all as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny import TEMPLATE, save_base, save_lora, tiny_tokenizer

from finetrace.core.chat import has_switch, opens_thought, prompt_ids
from finetrace.core.decoding import Decoding
from finetrace.data import build_corpus, read_rows
from finetrace.data.asks import Arm
from finetrace.data.prompts import read_prompts
from finetrace.engine import Answers
from finetrace.models import Pair, open_pair, preflight

CHAT = [{"role": "user", "content": "w1 w2"}]
# As the templates of the field do it: off writes an empty thought, on leaves it to the model.
OFF_IS_EMPTY = TEMPLATE + "{% if add_generation_prompt and not enable_thinking %}<think> </think> {% endif %}"
# On opens the thought itself; the switch has another name.
ON_OPENS = TEMPLATE + "{% if add_generation_prompt and thinking %}<think> {% endif %}"
ALWAYS = TEMPLATE + "{% if add_generation_prompt %}<think> {% endif %}"
# The switch stands before the conversation, so that texts move too.
BEFORE = "{% if enable_thinking %}w9 {% endif %}" + TEMPLATE


def tokenizer(template: str | None = TEMPLATE) -> Any:
    return tiny_tokenizer(words=["<think>", "</think>"], template=template)


def words(found: list[int], by: Any) -> str:
    return by.decode(found)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("thinking")
    base = save_base(folder, tokenizer=tokenizer(ON_OPENS))
    return open_pair(base, save_lora(folder, base, scale=0.3))


def test_the_switch_reaches_the_prompt() -> None:
    made = tokenizer(OFF_IS_EMPTY)
    assert words(prompt_ids(CHAT, made), made).endswith("<assistant> <think> </think>")
    assert words(prompt_ids(CHAT, made, thinking=True), made).endswith("<assistant>")
    assert not opens_thought(made)
    made = tokenizer(ON_OPENS)
    assert words(prompt_ids(CHAT, made), made).endswith("<assistant>")
    assert words(prompt_ids(CHAT, made, thinking=True), made).endswith("<assistant> <think>")
    assert opens_thought(made, thinking=True)
    assert not opens_thought(made)


@pytest.mark.parametrize(
    ("template", "switch"),
    [(OFF_IS_EMPTY, True), (ON_OPENS, True), (BEFORE, True), (ALWAYS, False), (TEMPLATE, False), (None, False)],
)  # fmt: skip
def test_whether_a_template_has_a_switch(template: str | None, switch: bool) -> None:
    assert has_switch(tokenizer(template)) is switch


def test_texts_move_only_where_the_template_moves_them() -> None:
    rows = read_rows([{"messages": [*CHAT, {"role": "assistant", "content": "w3"}]}, {"text": "w4 w5"}])
    for template, moves in ((OFF_IS_EMPTY, False), (BEFORE, True)):
        made = tokenizer(template)
        plain = build_corpus(rows, made)
        asked = build_corpus(rows, made, thinking=True)
        assert (plain.identity != asked.identity) is moves
        assert build_corpus(rows, made, thinking=False).identity == plain.identity


def test_identities_name_it_only_where_it_is_asked_for(pair: Pair) -> None:
    assert Arm().identity == {"name": "default", "system": None, "template": None}
    assert Arm(thinking=True).identity == Arm().identity | {"thinking": True}
    prompts = read_prompts([{"prompt": "w1 w2", "expect": "answer"}])
    off, on = (Answers(pair, prompts, Decoding(), arms=[Arm(thinking=one)]) for one in (False, True))
    assert "thinking" not in str(off.identity)
    assert off.identity != on.identity
    assert on.asked()[0] == [*off.asked()[0], pair.tokenizer.convert_tokens_to_ids("<think>")]


def test_a_thought_that_never_ends_is_unanswered(pair: Pair) -> None:
    prompts = read_prompts([{"prompt": f"w{i} w2", "expect": "answer"} for i in range(6)])
    decoding = Decoding(max_new_tokens=6, batch_size=6)
    on = Answers(pair, prompts, decoding, arms=[Arm(thinking=True)]).of("base")
    end = pair.tokenizer.convert_tokens_to_ids("</think>")
    assert [answer.unanswered for answer in on] == [end not in answer.ids for answer in on]
    assert any(answer.unanswered and answer.thought and not answer.text for answer in on)
    off = Answers(pair, prompts, decoding, arms=[Arm()]).of("base")
    assert not any(answer.unanswered for answer in off)
    spoken = pair.generate([p.text for p in prompts], decoding=decoding, thinking=True)["base"]
    assert [one.ids for one in spoken] == [answer.ids for answer in on]
    assert [one.thought for one in spoken] == [answer.thought for answer in on]


def test_the_preflight_says_what_was_asked_of_the_template(pair: Pair, tmp_path: Path) -> None:
    def line(one: Pair, thinking: bool) -> tuple[str, str] | None:
        found = [c for c in preflight(one, thinking=thinking) if c.name == "thinking"]
        return (found[0].status, found[0].text) if found else None

    assert line(pair, True) == ("ok", "The chat template is asked to think before it answers, on both sides.")
    assert line(pair, False) == ("ok", "The chat template is asked not to think, on both sides.")
    plain = open_pair(save_base(tmp_path), None)
    status, text = line(plain, True) or ("", "")
    assert status == "warning"
    assert "no switch for thinking" in text
    assert line(plain, False) is None
    always = open_pair(save_base(tmp_path, name="always", tokenizer=tokenizer(ALWAYS)), None)
    assert (line(always, False) or ("", ""))[0] == "note"
