"""Hydra's grammar in words: values, sweeps and globs, and words that are refused."""

from __future__ import annotations

import json
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.config import compose_run, compose_runs
from finetrace.config.fill import hints
from finetrace.config.grammar import Glob, parse
from finetrace.config.groups import read_entry
from finetrace.config.tree import RunConfig
from finetrace.core.errors import BadInput, ConfigErrors

CAKES = read_entry("organism", "cake_bake").finetuned_models


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("a=b", "a", "b"),
        ("a.b=1", "a.b", 1),
        ("a=0.5", "a", 0.5),
        ("a=null", "a", None),
        ("a=true", "a", True),
        ("a=mix1-0p5", "a", "mix1-0p5"),
        ("a=8k", "a", "8k"),
        ("a='x, y'", "a", "x, y"),
        ('a="x = > y"', "a", "x = > y"),
        ("a=[kl,diff_mining]", "a", ["kl", "diff_mining"]),
        ("a={b:1,c:[1,2]}", "a", {"b": 1, "c": [1, 2]}),
        ("diffing/method=kl", "diffing/method", "kl"),
        ("+a.b=1", "a.b", 1),
        ("++a=1", "a", 1),
        ("a=/data/of mine/x.jsonl", "a", "/data/of mine/x.jsonl"),
    ],
)
def test_values(word: str, key: str, value: object):
    found = parse(word)
    assert (found.key, found.value, found.sweep) == (key, value, None)


@pytest.mark.parametrize(
    ("word", "swept"),
    [
        ("a=1,2", ("a=1", "a=2")),
        ("a=choice(x,y)", ("a=x", "a=y")),
        ("a=range(1,4)", ("a=1", "a=2", "a=3")),
        ("a=[x,y],[z]", ("a=[x,y]", "a=[z]")),
        ("a='x, y',z", ("a='x, y'", "a=z")),
        ("a=glob(mix*)", Glob(("mix*",), ())),
        ("a=glob([a*,b*],exclude=*x)", Glob(("a*", "b*"), ("*x",))),
    ],
)
def test_sweeps(word: str, swept: object):
    assert parse(word).sweep == swept


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("kl", "'kl' is no setting: write key=value, as in seed=1."),
        ("=1", "is no setting"),
        ("", "is no setting"),
        ("~a", "takes something out"),
        ("~a=1", "takes something out"),
        ("a@b=1", "names a package"),
        ("a=x>1", "A text with signs in it stands in quotes, as in key='\"a > b\"'."),
        ("a=[1", "Quotes and brackets come in pairs"),
        ("a='x", "Quotes and brackets come in pairs"),
        ("a=range(1000000000)", "a sweep of more than 10,000 runs"),
        ("a=range(1,5,0)", "sweep"),
        ("a=range(5,1)", "is a sweep of nothing"),
        ("a=range(x)", "cannot be read"),
    ],
)
def test_words_that_cannot_be_read(word: str, said: str):
    with pytest.raises(BadInput) as error:
        parse(word)
    assert said in str(error.value)


TEXTS = st.text(string.ascii_letters + string.digits + " ,=[]{}:'\"\\_-./>()", max_size=30)
SCALARS = st.one_of(st.integers(-(10**9), 10**9), st.booleans(), st.none(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3),
    ),
    max_leaves=6,
)


def spoken(value: object) -> str:
    """A value as Hydra's grammar writes it: in quotes, a backslash counts only before a quote or at the end."""
    if isinstance(value, str):
        head = value.rstrip("\\")
        tail = value[len(head) :]
        parts = head.split('"')
        # every run of backslashes that stands before a quote is doubled, and the quote gets one of its own
        doubled = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts[:-1]]
        return '"' + "".join(part + '\\"' for part in doubled) + parts[-1] + tail * 2 + '"'
    if isinstance(value, list):
        return f"[{','.join(map(spoken, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{spoken(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_what_is_written_in_the_grammar_is_read_back(value: object):
    assert parse(f"key={spoken(value)}").value == value


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10**6), TEXTS)
def test_dotted_words_set_what_they_name_and_nothing_else(number: int, text: str):
    words = [f"seed={number}", f"system={spoken(text)}", f"infrastructure.slurm.time={number}"]
    config, plain = compose_run(words), compose_run([])
    assert (config.seed, config.system, config.infrastructure.slurm.time) == (number, text, number)
    differ = {name for name in hints(RunConfig) if getattr(config, name) != getattr(plain, name)}
    assert differ <= {"seed", "system", "infrastructure"}
    assert replace(config.infrastructure, slurm=plain.infrastructure.slurm) == plain.infrastructure


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(["max_samples", "context_len"]), st.integers(2, 10**6)), st.booleans())
def test_the_order_of_words_about_different_things_does_not_matter(limits: dict[str, int], backwards: bool):
    words = [f"data.{key}={value}" for key, value in limits.items()] + [
        "infrastructure.ray.workers=3",
        "data=c4",
    ]
    config = compose_run(words[::-1] if backwards else words)
    assert config.data == replace(read_entry("data", "c4"), **limits)
    assert config.infrastructure.ray.workers == 3


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_needs_to_be_asked_for():
    with pytest.raises(
        ConfigErrors, match="is a sweep: add --multirun, or quote it where it is one text: seed="
    ):
        compose_runs(["seed=1,2"])
    assert [words for _, words in compose_runs(["seed=1"])] == [("seed=1",)]


def test_the_last_word_of_a_sweep_turns_fastest():
    runs = compose_runs(["diffing/method=kl,[kl,diff_mining]", "seed=range(2)"], multirun=True)
    assert [(list(config.diffing.methods), config.seed) for config, _ in runs] == [
        (["kl"], 0),
        (["kl"], 1),
        (["kl", "diff_mining"], 0),
        (["kl", "diff_mining"], 1),
    ]
    assert [compose_run(words) for _, words in runs] == [config for config, _ in runs]


def test_globs_of_groups_models_and_variants():
    words = [
        "organism=glob(cake_b*)",
        "model=glob(qwen3_1_7B*)",
        "organism_variant=glob([mix1-0*,default],exclude=*p5)",
    ]
    runs = compose_runs(words, multirun=True)
    found = {(config.model.name, config.organism_variant) for config, _ in runs}
    mixed = {name for name in CAKES["qwen3_1_7B"] if name.startswith("mix1-0") and name != "mix1-0p5"}
    assert found == {("qwen3_1_7B", name) for name in (*mixed, "default")} | {("qwen3_1_7B_Base", "default")}
    assert len(runs) == len(found)


def test_a_glob_leaves_out_organisms_that_have_none_of_it():
    runs = compose_runs(["organism=cake_bake,taboo_gold", "organism_variant=glob(full)"], multirun=True)
    assert [config.organism.name for config, _ in runs] == ["cake_bake"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["organism=glob(nothing*)"], "'organism=glob(nothing*)' matches nothing."),
        (["organism_variant=glob(nothing*)"], "'organism_variant=glob(nothing*)' matches nothing."),
        (["seed=glob(*)"], "names are matched of a group only"),
        (
            ["seed=range(200)", "data.max_samples=range(1,201)"],
            "This is a sweep of 40,000 runs; one may have 10,000.",
        ),
    ],
)
def test_sweeps_of_nothing_and_of_too_much(words: list[str], said: str):
    with pytest.raises(BadInput) as error:
        compose_runs(words, multirun=True)
    assert said in str(error.value)


def test_a_sweep_tells_the_slips_of_all_its_runs_once():
    with pytest.raises(ConfigErrors) as error:
        compose_runs(["organism=cake_bake,cake_bak", "seed=1,x", "sed=1"], multirun=True)
    assert sorted(error.value.problems) == [
        "There is no organism 'cake_bak'. Did you mean 'cake_bake'?",
        "There is no setting 'sed'. Did you mean 'seed'?",
        "seed is 'x'; it takes a whole number.",
    ]
