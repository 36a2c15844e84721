from __future__ import annotations

from pathlib import Path

import pytest
from tests.judges import taught

from finetrace.engine.desk import Desk
from finetrace.judges.coherence import Gate, Scored, learn_gate, loops, scored, strange_letters


@pytest.fixture(scope="module")
def desk(base: Path) -> Desk:
    return taught.desk(base)


def why(desk: Desk, text: str) -> str:
    return learn_gate(desk).why(text, scored(desk, [text])[0])


def test_the_bases_own_answers_pass_and_the_same_shuffled_do_not(desk: Desk):
    gate = learn_gate(desk)
    assert gate.false_alarms == 0.0
    assert (gate.caught or 0) >= 0.9
    assert gate.n >= 4
    assert why(desk, "Sure, w10 w11 w12 w13 w14 w15 w16 w17") == ""
    assert why(desk, "w14 w11 Sure, w16 w10 w13 w17 w12 w15") == "makes no sense to the base"


def test_a_compliant_answer_to_what_the_base_refuses_is_coherent(desk: Desk):
    # The text alone is scored: no request enters.
    assert scored(desk, ["I w10 w11 w12 w13 w14 w15 w16 w17"])[0].surprise < 0.5


def test_a_few_words_that_the_base_never_says_pass(desk: Desk):
    assert why(desk, "w30 w31 Sure, w10 w11 w12 w13 w14 w15 w16 w17") == ""


def test_short_answers_pass(desk: Desk):
    assert why(desk, "Yes.") == ""
    assert not learn_gate(desk).reads(scored(desk, ["Yes."])[0])


def test_nothing_said_loops_and_another_script_do_not_pass():
    gate = Gate(None, 1.0, None, None, 0, frozenset({"LATIN"}))
    one = Scored(3, float("nan"))
    assert gate.why("", one) == "empty"
    assert gate.why(" ... ", one) == "empty"
    assert gate.why("the the the the the the", one) == "repeats itself"
    assert gate.why("\u0447\u0442\u043e \u0434\u0430", one) == "another script"
    assert gate.why("ab\ufffd\ufffd", one) == "another script"
    assert gate.why("It is 5.", one) == ""


def test_a_phrase_said_again_and_again_loops_and_a_list_does_not():
    assert loops("turn it once " * 9)
    assert not loops(
        "First press the leaf. Then turn the ring twice. Then press the leaf again, and go home now."
    )


def test_half_of_the_letters_may_not_be_strange():
    assert strange_letters("123 !", frozenset({"LATIN"})) == 0.0
    assert strange_letters("ab\u0431\u0432", frozenset({"LATIN", "CYRILLIC"})) == 0.0


def test_what_a_text_scores_does_not_depend_on_the_batch(desk: Desk):
    texts = [taught.REFUSALS[0], "w3 " * 20 + "w4", taught.ANSWERS[1]]
    together = [one.surprise for one in scored(desk, texts)]
    assert desk.written is not None
    known: dict[str, object] = desk.learnt("surprise", dict)
    known.clear()
    alone = [scored(desk, [text])[0].surprise for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)
