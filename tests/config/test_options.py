"""Options of a method against its own dataclass, and plain values as types want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.config.fill import UNREADABLE, Told, fill, read, takes
from finetrace.config.options import check_options, configure, parse_setting
from finetrace.core.card import Method, Needs, method
from finetrace.core.errors import BadInput, ConfigErrors


@dataclass(frozen=True)
class Toy:
    count: int = 1
    share: float = 0.5
    on: bool = False
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    words: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    either: int | str = 0
    prefix: str | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise BadInput("toy.count is at least 0.")


CARD = Method("toy", 1, "A toy.", Toy, lambda config: Needs(), None)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("count", "3", 3),
        ("share", "1", 1.0),
        ("on", "true", True),
        ("on", "False", False),
        ("name", "12", "12"),
        ("kind", "y", "y"),
        ("words", "a,b", ("a", "b")),
        ("words", '["a, b"]', ("a, b",)),
        ("words", "", ()),
        ("pair", "3,4", (3, 4.0)),
        ("either", "7", "7"),
        ("prefix", "7", "7"),
        ("prefix", "null", None),
        ("anything", "[1, 2]", [1, 2]),
    ],
)
def test_a_text_becomes_what_the_option_takes(option: str, text: str, value: Any):
    found = getattr(configure(CARD, {}, {option: text}), option)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cuont": 1}, "The method 'toy' has no option 'cuont'. Did you mean 'count'?"),
        ({"count": 1.5}, "toy.count is 1.5; it takes a whole number."),
        ({"count": True}, "toy.count is True; it takes a whole number."),
        ({"share": True}, "toy.share is True; it takes a number."),
        ({"on": 1}, "toy.on is 1; it takes true or false."),
        ({"name": 3}, "toy.name is 3; it takes a text."),
        ({"kind": "z"}, "toy.kind is 'z'; it takes one of x, y."),
        ({"words": [1]}, "toy.words is [1]; it takes texts, as in [a, b]."),
        ({"pair": [1]}, "toy.pair is [1]; it takes whole numbers, as in [0, 1]."),
        ({"either": 1.5}, "toy.either is 1.5; it takes a whole number or a text."),
        ({"prefix": 3}, "toy.prefix is 3; it takes a text, or null."),
        ({"count": -1}, "toy.count is at least 0."),
        ({"name": "${x}"}, "toy.name holds '${', and nothing is looked up here"),
    ],
)
def test_what_an_option_cannot_take_is_told(options: dict[str, Any], said: str):
    with pytest.raises(BadInput) as error:
        configure(CARD, options)
    assert said in str(error.value)


def test_several_wrong_options_are_told_at_once():
    with pytest.raises(ConfigErrors) as error:
        configure(CARD, {"count": "x", "share": "y"}, {"nam": "z"})
    assert len(error.value.problems) == 3
    config, problems = check_options(CARD, {"kind": "y", "count": "x"})
    assert (config, len(problems)) == (None, 1)


def test_what_needs_says_is_wrong_is_told_too():
    def needs(config: Toy) -> Needs:
        raise BadInput("toy cannot be asked that.")

    card = Method("toy", 1, "A toy.", Toy, needs, None)
    assert check_options(card, {}) == (None, ["toy cannot be asked that."])


def test_a_setting_names_a_method_of_the_audit():
    assert parse_setting("kl.passages = 4", ["kl"]) == ("kl", "passages", "4")
    with pytest.raises(BadInput, match=r"write method\.option=value"):
        parse_setting("passages=4", ["kl"])
    with pytest.raises(BadInput, match=r"There is no method in this audit 'kk'\. Did you mean 'kl'\?"):
        parse_setting("kk.passages=4", ["kl"])


def test_a_literal_of_a_real_method_is_checked():
    with pytest.raises(BadInput, match=r"neuron_drift\.score is 'both'; it takes one of snip, wanda"):
        configure(method("neuron_drift"), {}, {"score": "both"})


@dataclass(frozen=True)
class Part:
    size: int = 1


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = Part()
    parts: Mapping[str, Mapping[str, Part]] | None = None


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text("name.prtsiz", max_size=5), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "part", "parts", "other"]), PLAIN))
def test_any_value_is_read_or_told(values: dict[str, Any]):
    told = Told()
    made = fill(Whole, values, "whole", told)
    assert isinstance(made.part, Part)
    assert isinstance(made.part.size, int)
    # nothing is lost in silence: a value that was given is there, or something is said
    if not told.problems:
        assert made.name == values["name"]
        assert set(values) <= {"name", "part", "parts"}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([int, float, bool, str, tuple[int, ...], str | None, Literal["a"]]), PLAIN)
def test_what_is_read_has_the_type_that_was_asked_for(kind: Any, value: Any):
    told = Told()
    found = read(kind, value, "x", told)
    assert (found is UNREADABLE) == bool(told.problems)
    if found is not UNREADABLE and not isinstance(found, tuple):
        again = read(kind, found, "x", told)
        assert again is found or again == found or found != found
    assert takes(kind)
