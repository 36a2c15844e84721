"""The shipped folder: it is what the code makes, and Hydra itself composes the same from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from finetrace.config import as_yaml, compose_run
from finetrace.config.generate import method_files
from finetrace.config.groups import METHOD, names
from finetrace.config.recipes import SHIPPED
from finetrace.config.root import PARTS, SECTIONS, read_root
from finetrace.config.tree import RunConfig
from finetrace.core.card import discover

LINKED = Path(__file__).parents[2] / "configs"


def test_the_files_of_methods_are_what_their_dataclasses_say():
    wanted = method_files()
    assert {path: path.read_text(encoding="utf-8") for path in (SHIPPED / METHOD).glob("*.yaml")} == wanted, (
        "run: python -m finetrace.config.generate"
    )


def test_config_yaml_says_what_the_dataclasses_default_to():
    root = read_root(None)
    assert (root.problems, root.notes) == ((), ())
    fields = {name: one.default for name, one in RunConfig.__dataclass_fields__.items()}
    assert root.simple == {name: fields[name] for name in root.simple}
    assert dict(root.sections) == {name: fields[name] for name in SECTIONS}
    assert set(root.values) == {*root.simple, *SECTIONS}


def test_every_method_has_a_file_and_every_group_its_defaults():
    assert set(names(METHOD)) == set(discover()[0])
    assert {"local", "ray", "slurm"} & set(names("infrastructure"))
    assert "auto" not in names("model")


def within(part: Any, whole: Any) -> bool:
    """Whether all that Hydra has is in ours, which shows defaults too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and within(part[key], whole[key]) for key in part)
    return part == whole


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (
            SHIPPED,
            "organism=fda_approval model=qwen3_1_7B diffing/method=kl diffing.method.passages=3 seed=7",
        ),
        (
            LINKED,
            "organism=em_bad_medical_advice model=llama31_8B_Instruct data=es data.max_samples=9 pipeline.mode=diffing",
        ),
        (
            LINKED,
            "model=llama32_1B organism_variant=default system='a,b' nulls=[x,y] diffing.evaluation.agent.runs=3",
        ),
    ],
)
def test_hydra_itself_composes_the_same(folder: Path, words: str):
    given = words.split()
    with initialize_config_dir(str(folder), version_base=None):
        theirs: Any = OmegaConf.to_container(compose("config", overrides=given), resolve=True)
    ours = yaml.safe_load(as_yaml(compose_run(given)))
    (method,) = ours["diffing"].pop("methods")
    options = yaml.safe_load(as_yaml(compose_run(given)))["diffing"]["methods"][method]
    assert theirs["diffing"].pop("method") == {"name": method, **options}
    trained = theirs["organism"].pop("finetuned_models")[ours["model"]["name"]][ours["organism_variant"]]
    assert within(trained, ours["variant"])
    for part in PARTS:
        assert within(theirs.pop(part), ours[part]), part
    assert theirs == {key: ours[key] for key in theirs}
    assert set(ours) - set(theirs) == {*PARTS, "variant", "notes"}
