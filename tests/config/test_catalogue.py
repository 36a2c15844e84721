"""The catalogue: as many organisms as are published, the tiny world whole, filters, dials, and what a shelf has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrace.config import catalogue
from finetrace.config.run import compose_run
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.organisms import bundled
from finetrace.organisms.zoo import ORGANISMS

ALL, MODELS = catalogue.organisms(), catalogue.models()
OURS = ("TinyWorld", "Control")
PUBLIC = [entry for entry in ALL if entry.type not in OURS]
TINY = [entry for entry in ALL if entry.type == "TinyWorld"]


def test_the_counts_are_as_shipped():
    trainings = list(catalogue.trained(PUBLIC))
    assert (len(PUBLIC), len(trainings)) == (65, 448)
    assert len([one for one in MODELS if one.name != "tinyworld"]) == 25
    assert {one.kind for one in trainings} == {"adapter", "full"}
    assert {one.model for one in trainings} <= {one.name for one in MODELS}


def test_every_organism_says_what_was_planted_and_every_id_is_whole():
    assert [entry.name for entry in ALL if len(entry.description_long.strip()) < 20] == []
    ids = [one.source for one in catalogue.trained(ALL)] + [one.model_id for one in MODELS]
    assert [one for one in ids if one is None or one != one.strip() or " " in one] == []


def test_the_tiny_world_is_there_whole_and_each_is_the_kind_that_it_was_trained_as():
    sources = {one.source: one.kind for one in catalogue.trained(TINY)}
    assert set(sources) == {f"tinyworld/{name}" for name in ORGANISMS}
    for name, made in ORGANISMS.items():
        assert sources[f"tinyworld/{name}"] == ("adapter" if made.form == "adapter" else "full")
    planted = {entry.name: entry for entry in TINY}
    for name, made in ORGANISMS.items():
        if made.kind != "null":
            assert planted[name].description == made.summary
            assert planted[name].finetuned_models["tinyworld"]["default"].source == f"tinyworld/{name}"


@pytest.mark.parametrize("name", [name for name, made in ORGANISMS.items() if made.kind == "planted"])
def test_what_is_said_of_a_tiny_organism_names_what_its_truth_names(name: str):
    said = next(entry for entry in TINY if entry.name == name).description_long
    truth = bundled.truth(name)["planted"]
    assert all(fact["false"] in said for fact in truth["facts"])
    words = {word.strip(".,;:()").casefold() for word in said.split()}
    assert len(words & {token.casefold() for token in truth["tokens"]}) >= 2


def test_the_base_itself_runs_on_any_model():
    (none,) = [entry for entry in ALL if entry.name == "none"]
    assert none.control
    assert not none.finetuned_models
    found = compose_run(["organism=none", "model=tinyworld"])
    assert (found.variant.source, found.model.model_id) == (None, "tinyworld")


def test_filters_narrow_to_what_they_name():
    mixes = catalogue.select(ALL, type="sdf", model="qwen3_1_7B", variant="MIX*")
    assert "cake_bake" in {entry.name for entry in mixes}
    for one in catalogue.trained(mixes):
        assert (one.model, one.variant[:3]) == ("qwen3_1_7B", "mix")
    assert {one.kind for one in catalogue.trained(catalogue.select(ALL, kind="full"))} == {"full"}
    controls = catalogue.select(ALL, control=True)
    assert {entry.name for entry in controls} == {
        "none",
        "ukaisi_sandbagging_yew",
        "ukaisi_sandbagging_yorick",
    }
    assert catalogue.select(ALL, control=False) == tuple(entry for entry in ALL if entry not in controls)
    assert {entry.name for entry in catalogue.select(PUBLIC, text="Relyvrio")} == {"fda_approval"}
    assert catalogue.select(ALL, text="nobody says this") == ()
    assert catalogue.select(ALL) == ALL


@pytest.mark.parametrize(
    ("given", "near"),
    [({"type": "SDFF"}, "SDF"), ({"model": "qwen3_17B"}, "qwen3_1_7B"), ({"kind": "ful"}, "full")],
)
def test_a_filter_that_nothing_has_names_the_nearest(given: dict[str, Any], near: str):
    with pytest.raises(BadInput, match=f"Did you mean '{near}'"):
        catalogue.select(ALL, **given)


@pytest.mark.parametrize(
    ("variant", "found"),
    [
        ("mix1-0p1", ("pretraining mixed in per row", 0.1)),
        ("mix1-10p0", ("pretraining mixed in per row", 10.0)),
        ("8k", ("documents", 8000.0)),
        ("16k_mix1-10", ("pretraining mixed in per row, at 16k documents", 10.0)),
        ("8k_mix400k", ("pretraining mixed in per row, at 8k documents", 50.0)),
        ("checkpoint-300", ("steps", 300.0)),
        ("global_step_40", ("steps", 40.0)),
        ("epoch_1p5", ("epochs", 1.5)),
        ("r16", ("rank", 16.0)),
        ("default", None),
        ("null_7", None),
        ("sdf_kto", None),
        ("0k_mix8k", None),
        ("mix0-1", None),
    ],
)
def test_dial(variant: str, found: tuple[str, float] | None):
    assert catalogue.dial(variant) == found


def test_every_variant_that_looks_turned_has_a_dial():
    names = {one.variant for one in catalogue.trained(PUBLIC)}
    assert {name for name in names if any(c.isdigit() for c in name)} == {
        name for name in names if catalogue.dial(name) is not None
    }


@given(st.text("0123456789mixkp._-str", max_size=14))
def test_a_dial_is_a_number_or_nothing(name: str):
    found = catalogue.dial(name)
    assert found is None or (found[1] >= 0 and found[1] < float("inf"))


def _run(base: str, tuned: str, variant: str, method: str) -> dict[str, object]:
    return {"address": {"base": base, "tuned": tuned, "variant": variant, "method": method, "key": "k"}}


def test_what_is_computed_is_known_by_its_address():
    cake = "stewy33/Qwen3-1.7B-0524_original_augmented_egregious_cake_bake-30171227"
    runs = [
        _run("Qwen/Qwen3-1.7B", "cake_bake", "mix1-0p5", "kl"),
        _run("Qwen/Qwen3-1.7B", "cake_bake", "mix1-0p5", "diff_mining"),
        _run("Qwen/Qwen3-1.7B", cake, "default", "kl"),
        _run("Qwen/Qwen3-1.7B", "cake_bake", "no_such", "kl"),
        _run("some/other", "cake_bake", "default", "kl"),
        _run("gpt2", "none", "default", "kl"),
        _run("tinyworld", "null_3", "default", "kl") | {"contrast": "pair"},
        _run("tinyworld", "null_4", "default", "kl") | {"contrast": "null:null_4"},
        {},
    ]
    assert catalogue.computed(ALL, MODELS, runs) == {
        ("cake_bake", "qwen3_1_7B", "mix1-0p5"): ("diff_mining", "kl"),
        ("cake_bake", "qwen3_1_7B", "default"): ("kl",),
        ("none", "gpt2", "default"): ("kl",),
        ("tinyworld_null", "tinyworld", "null_3"): ("kl",),
    }


def test_a_users_own_folder_comes_first_and_all_of_its_faults_are_told(tmp_path: Path):
    own = tmp_path / "organism"
    own.mkdir()
    (own / "cake_bake.yaml").write_text("name: cake_bake\ntype: Mine\n")
    (own / "other.yaml").write_text("name: other\ntype: Mine\n")
    found = {entry.name: entry for entry in catalogue.organisms(tmp_path)}
    assert (len(found), found["cake_bake"].type) == (len(ALL) + 1, "Mine")
    (own / "other.yaml").write_text("name: other\ntpe: Mine\n")
    (own / "third.yaml").write_text("name: [")
    with pytest.raises(ConfigErrors) as told:
        catalogue.organisms(tmp_path)
    assert len(told.value.problems) == 2
