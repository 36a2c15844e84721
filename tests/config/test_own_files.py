"""A user's own recipe files: found, extended, and read as plain values whatever they hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.config import compose, recipe_names
from finetrace.config.reading import LARGEST, read_yaml
from finetrace.core.errors import BadInput, ConfigErrors


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return f"recipe={path}"


def problems(*words: str, config_dir: Path | None = None) -> str:
    with pytest.raises(ConfigErrors) as error:
        compose(words, config_dir)
    return "\n".join(error.value.problems)


def test_a_file_of_ones_own_by_path_and_by_name(tmp_path: Path):
    text = "extends: seed000_tinyllama\nlr: 1e-3\nlora:\n  r: 4\ndata: mine.jsonl\n"
    made = compose([write(tmp_path / "recipe" / "mine.yaml", text)])
    assert (made.name, made.train.lr, made.lora.r, made.data.source) == ("mine", 1e-3, 4, "mine.jsonl")
    assert (made.lora.alpha, made.train.max_steps) == (32, 300)
    assert compose(["recipe=mine"], tmp_path) == made
    assert "mine" in recipe_names(tmp_path)
    assert compose(["recipe=mine", "lr=2e-3"], tmp_path).train.lr == 2e-3


def test_another_model_forgets_the_revision_of_the_files(tmp_path: Path):
    word = write(tmp_path / "mine.yaml", "model: org/mine\nrevision: abc\n")
    assert compose([word]).revision == "abc"
    assert compose([word, "model=org/other"]).revision is None
    assert compose([word, "model=org/other", "revision=def"]).revision == "def"


def test_ones_own_recipe_wins_over_a_shipped_one_of_the_same_name(tmp_path: Path):
    write(tmp_path / "seed000_tinyllama.yaml", "model: org/mine\n")
    assert compose(["recipe=seed000_tinyllama"], tmp_path).model == "org/mine"


def test_a_recipe_extends_one_beside_it(tmp_path: Path):
    write(tmp_path / "a" / "first.yaml", "model: org/mine\nlr: 3e-3\n")
    word = write(tmp_path / "a" / "second.yaml", "extends: ./first.yaml\nbatch: 9\n")
    made = compose([word])
    assert (made.name, made.model, made.train.lr, made.train.batch) == ("second", "org/mine", 3e-3, 9)


def test_recipes_that_extend_one_another_are_refused(tmp_path: Path):
    write(tmp_path / "a.yaml", "extends: b\n")
    write(tmp_path / "b.yaml", "extends: a\n")
    assert "extends itself" in problems("recipe=a", config_dir=tmp_path)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path):
    text = "model: org/mine\nlearning_rate: 3\nlora:\n  r: many\n  rr: 1\n"
    said = problems(write(tmp_path / "mine.yaml", text), "batch=x")
    assert "mine.yaml: There is no setting 'learning_rate'." in said
    assert "mine.yaml: lora.r is 'many'; it takes a whole number" in said
    assert "mine.yaml: There is no setting 'lora.rr'. Did you mean 'lora.r'?" in said
    assert "\ntrain.batch is 'x'" in said


HOSTILE = {
    "an object": "model: !!python/object/apply:os.system ['echo taken > taken']\n",
    "a new object": "model: !!python/object/new:tuple [[1]]\n",
    "a name": "model: !!python/name:os.system\n",
    "a tag of its own": "model: !secret x\n",
    "the environment": "model: ${oc.env:FINETRACE_SECRET}\n",
    "a value elsewhere": "model: ${train.lr}\n",
    "in a list": "model: x\nlora:\n  targets: ['${oc.env:FINETRACE_SECRET}']\n",
    "a decoder": "model: ${oc.decode:'1'}\n",
    "a missing one": "model: ???\n",
    "an alias": "model: &a x\nname: *a\n",
    "a bomb": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nmodel: x\n",
    "a merge": "lora: &l {r: 1}\ntrain:\n  <<: *l\n",
    "a key twice": "model: x\nmodel: y\n",
    "two documents": "model: x\n---\nmodel: y\n",
    "no mapping": "- model\n",
    "a text": "model\n",
    "a broken one": "model: [x\n",
    "bytes": "model: !!binary aGVsbG8=\n",
    "a set": "model: !!set {a, b}\n",
    "a date": "model: 2001-02-30\n",
    "a null byte": "model: a\0b\n",
    "nesting without end": "model: " + "[" * 20000 + "\n",
    "a book": "model: " + "x" * LARGEST + "\n",
    "a list as a key": "? [a, b]\n: x\nmodel: x\n",
    "extends a list": "extends: [a]\n",
    "extends a shell": "extends: $(touch taken)\n",
    "a summary of numbers": "summary: 3\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_clear_error(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FINETRACE_SECRET", "s3cret")
    monkeypatch.chdir(tmp_path)
    said = problems(write(tmp_path / "mine.yaml", text))
    assert "mine.yaml" in said or "There is no recipe" in said
    assert "s3cret" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize(
    "word", ["model=${oc.env:FINETRACE_SECRET}", "lora.targets=[${oc.env:FINETRACE_SECRET}]"]
)
def test_what_is_typed_is_not_looked_up_either(word: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FINETRACE_SECRET", "s3cret")
    assert "nothing is looked up here" in problems("recipe=seed000_tinyllama", word)


@pytest.mark.parametrize("given", ["nowhere.yaml", "a/b", "../x", "..", "seed000_tinyllama/..", ""])
def test_a_recipe_that_is_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "here is no recipe" in problems(f"recipe={given}") or "cannot be read" in problems(
        f"recipe={given}"
    )


def test_a_folder_and_a_file_that_is_no_text(tmp_path: Path):
    (tmp_path / "folder.yaml").mkdir()
    assert "is a folder" in problems(f"recipe={tmp_path / 'folder.yaml'}")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problems(f"recipe={tmp_path / 'bytes.yaml'}")
    assert "is not a folder" in problems("recipe=seed000_tinyllama", config_dir=tmp_path / "none")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_mapping_or_one_error(text: str):
    with contextlib.suppress(BadInput):
        assert isinstance(read_yaml(text, "it"), dict)
