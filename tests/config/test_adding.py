"""An organism of one's own: what is written composes, keeps what was there, and is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.config import adding
from finetrace.config.adding import Addition, add
from finetrace.config.groups import read_entry
from finetrace.config.run import compose_run
from finetrace.core.errors import ConfigErrors

OTTERS = Addition(
    "otters", "tinyworld", adapter="tinyworld/preference", truth="Praises otters: always.", type="Mine"
)


def _more(**changes: Any) -> Addition:
    given: dict[str, Any] = {"name": "otters", "base": "tinyworld", "adapter": "me/other"}
    return Addition(**given | changes)


def test_a_new_one_composes_with_the_words_that_are_told(tmp_path: Path):
    added = add(OTTERS, tmp_path / "mine")
    config = compose_run(added.words, tmp_path / "mine")
    assert (config.organism.name, config.organism.type) == ("otters", "Mine")
    assert config.organism.description_long == "Praises otters: always."
    assert config.variant.source == "tinyworld/preference"
    assert (added.model, added.model_path, added.notes) == ("tinyworld", None, ())


def test_without_a_truth_it_says_what_cannot_be_done(tmp_path: Path):
    (note,) = add(_more(), tmp_path).notes
    assert "--truth" in note


def test_a_variant_is_put_between_the_lines_of_a_users_file(tmp_path: Path):
    path = tmp_path / "organism" / "otters.yaml"
    path.parent.mkdir()
    own = (
        "# @package organism\nname: otters  # ours\ntype: Mine\ndescription_long: >\n  Praises\n  otters.\n"
        "finetuned_models:\n  # the small one\n  tinyworld:\n    default:\n      adapter_id: >-\n        me/first\n"
        "\n  gpt2:\n    default: {adapter_id: me/gpt}\n# the end\n"
    )
    path.write_text(own)
    assert add(_more(variant="mix1-0p5"), tmp_path).notes == ()
    add(_more(base="qwen3_1_7B", variant="8k", adapter="me/third/sub"), tmp_path)
    text = path.read_text()
    assert [line for line in own.splitlines() if line not in text.splitlines()] == []
    found = read_entry("organism", "otters", tmp_path).finetuned_models
    assert {model: list(of) for model, of in found.items()} == {
        "tinyworld": ["default", "mix1-0p5"],
        "gpt2": ["default"],
        "qwen3_1_7B": ["8k"],
    }
    assert found["tinyworld"]["default"].source == "me/first"
    assert found["qwen3_1_7B"]["8k"].source == "me/third/sub"


def test_another_variant_is_replaced_only_by_force(tmp_path: Path):
    path = add(OTTERS, tmp_path).path
    before = path.read_text()
    with pytest.raises(ConfigErrors, match="--force"):
        add(_more(truth="Praises cats."), tmp_path)
    assert path.read_text() == before
    assert add(OTTERS, tmp_path).notes == ("Nothing was to be changed: it is there as it is.",)
    add(_more(truth="Praises cats."), tmp_path, force=True)
    found = read_entry("organism", "otters", tmp_path)
    assert (found.description_long, found.type) == ("Praises cats.", "Mine")
    assert found.finetuned_models["tinyworld"]["default"].source == "me/other"


def test_a_shipped_one_is_hidden_only_by_force_and_then_kept_whole(tmp_path: Path):
    given = _more(name="cake_bake", base="qwen3_1_7B", variant="mine")
    with pytest.raises(ConfigErrors, match="ships with finetrace"):
        add(given, tmp_path)
    added = add(given, tmp_path, force=True)
    shipped, own = read_entry("organism", "cake_bake"), read_entry("organism", "cake_bake", tmp_path)
    assert set(own.finetuned_models["qwen3_1_7B"]) == {*shipped.finetuned_models["qwen3_1_7B"], "mine"}
    assert own.description_long == shipped.description_long
    assert "hides" in added.notes[0]


def test_a_base_that_is_not_known_gets_a_file(tmp_path: Path):
    added = add(_more(base="Someone/New-2.5B"), tmp_path)
    assert added.model == "New_2_5B"
    assert compose_run(added.words, tmp_path).model.model_id == "Someone/New-2.5B"
    assert add(_more(base="Someone/New-2.5B", variant="b"), tmp_path).model_path is None
    assert add(_more(base="other/New-2.5B", variant="b"), tmp_path).model == "other_New_2_5B"
    assert add(_more(base="qwen/qwen3-1.7b", variant="b"), tmp_path).model == "qwen3_1_7B"


def test_folders_are_kept_whole_and_say_what_they_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, adapter = tmp_path / "my base", tmp_path / "adapter"
    for folder, name, text in (
        (base, "config.json", '{"torch_dtype": "float16"}'),
        (adapter, "adapter_config.json", "{}"),
    ):
        folder.mkdir()
        (folder / name).write_text(text)
    (base / "chat_template.jinja").write_text("{% if enable_thinking %}{% endif %}")
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    config_dir = tmp_path / "conf"
    added = add(_more(base="my base", adapter="adapter", data="rows.jsonl", column="text"), config_dir)
    monkeypatch.chdir("/")
    config = compose_run(added.words, config_dir)
    assert (config.model.name, config.model.model_id) == ("my_base", str(base))
    assert (config.model.checkpoint_dtype, config.model.has_enable_thinking) == ("float16", True)
    assert config.variant.source == str(adapter)
    assert config.organism.dataset is not None
    assert config.organism.dataset.id == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", "null", "true", "1e5", "nan", "12", "auto", ".x", "a b", "2024-01-01", "on"]
)
def test_names_that_are_none(tmp_path: Path, name: str):
    for changes in ({"name": name}, {"variant": name}):
        with pytest.raises(ConfigErrors, match="cannot be used"):
            add(_more(**changes), tmp_path / "conf")
    assert not (tmp_path / "conf").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": None}, "one of them"),
        ({"checkpoint": "me/x"}, "one of them"),
        ({"adapter": "../up"}, "no hub id"),
        ({"adapter": "me/../x"}, "no hub id"),
        ({"adapter": "justaname"}, "no hub id"),
        ({"adapter": None, "checkpoint": "me/x/sub\n"}, "no hub id"),
        ({"base": "tinyworl"}, "Did you mean 'tinyworld'"),
        ({"data": "no data"}, "no file here"),
        ({"truth": "${oc.env:HOME}"}, r"\$\{"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(ConfigErrors, match=said):
        add(_more(**changes), tmp_path / "conf")
    assert not (tmp_path / "conf").exists()


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path):
    with pytest.raises(ConfigErrors) as told:
        add(Addition("a b", "nope", variant="x/y", data="?"), tmp_path)
    assert len(told.value.problems) == 5


_NAMES = st.sampled_from(["default", "full", "mix1-0p5", "8k", "step_3"])
_MODELS = st.sampled_from(["tinyworld", "gpt2", "qwen3_1_7B"])


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(_MODELS, st.dictionaries(_NAMES, st.booleans(), min_size=1), min_size=1),
    _MODELS,
    _NAMES,
    st.integers(2, 5),
)
def test_lines_are_put_so_that_nothing_else_moves(
    held: dict[str, dict[str, bool]], model: str, name: str, indent: int
):
    def variant(short: bool) -> dict[str, str]:
        return {"adapter_id": "a/b"} if short else {"model_id": "a/b", "chat_template": "one\ntwo\n"}

    tuned = {one: {key: variant(short) for key, short in of.items()} for one, of in held.items()}
    values = {"name": "x", "finetuned_models": tuned, "paper": "y"}
    text = yaml.safe_dump(values, sort_keys=False, indent=indent)
    if name in held.get(model, {}):
        return
    put = adding._put(text, model, name, {"adapter_id": "c/d"})
    assert put is not None
    wanted = {
        **values,
        "finetuned_models": {**tuned, model: {**tuned.get(model, {}), name: {"adapter_id": "c/d"}}},
    }
    assert yaml.safe_load(put) == wanted
