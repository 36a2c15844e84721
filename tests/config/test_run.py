"""A run composed from words and files: the whole catalogue with every method, what is typed over it, and what is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetrace.config import as_yaml, compose_run, gather_run
from finetrace.config.groups import GROUPS, names, read_entry
from finetrace.config.methods import all_options
from finetrace.config.tree import RunConfig
from finetrace.core.card import discover
from finetrace.core.errors import ConfigErrors

METHODS, _ = discover()
# What a method cannot do without, and has no default.
WANTED = {"feature_rates": ["diffing.method.sae=org/sae"]}


def told(*words: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        compose_run(words, config_dir)
    return list(error.value.problems)


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_every_fine_tune_composes_with_every_method():
    composed = 0
    for organism in (read_entry("organism", name) for name in names("organism")):
        for model, variants in organism.finetuned_models.items():
            for variant, found in variants.items():
                where = [f"organism={organism.name}", f"model={model}", f"organism_variant={variant}"]
                for method in METHODS:
                    config = compose_run([*where, f"diffing/method={method}", *WANTED.get(method, ())])
                    assert (config.organism, config.model.name, config.variant) == (organism, model, found)
                    assert list(config.diffing.methods) == [method]
                    assert config.notes == ()
                    composed += 1
    assert composed >= 448 * len(METHODS)


def test_every_name_of_every_group_composes():
    for kind in set(GROUPS) - {"organism", "model", "diffing/method"}:
        for name in names(kind):
            model = ["organism=tinyworld_null"] if name == "tinyworld" else []
            config, problems = gather_run([f"{kind}={name}", *model])
            assert config is not None, (kind, name)
            assert problems == [], (kind, name)
            assert getattr(config, kind).name == name


def test_the_defaults_are_those_of_the_seed():
    config = compose_run([])
    assert (config.organism.name, config.organism_variant, config.model.name) == (
        "cake_bake",
        "default",
        "gemma3_1B",
    )
    assert list(config.diffing.methods) == ["diff_mining"]
    assert (config.pipeline.mode, config.infrastructure.kind, config.data.id) == ("full", "local", None)


def test_a_control_without_a_fine_tune_is_the_base_itself_on_any_model():
    config = compose_run(["organism=none", "model=gpt2"])
    assert (config.organism.control, config.variant.source) == (True, None)
    assert told("organism=none", "model=gpt2", "organism_variant=../up") == [
        "The organism 'none' has no variant '../up': leave organism_variant out."
    ]
    assert told("organism=none") == [
        "The organism 'none' names no model: choose one, as in model=qwen3_1_7B."
    ]


# -- the words of the seed ---------------------------------------------------------------------------------------------

SEED: list[tuple[str, dict[str, Any]]] = [
    ("pipeline.mode=diffing", {"pipeline.mode": "diffing"}),
    ("pipeline.mode=preprocessing", {"pipeline.mode": "preprocessing"}),
    ("pipeline.mode=evaluation", {"pipeline.mode": "evaluation"}),
    ("pipeline.mode=full diffing.method.in_memory=true", {"diffing.in_memory": True}),
    (
        "organism=fda_approval model=qwen3_1_7B diffing/method=kl",
        {"organism.name": "fda_approval", "model.model_id": "Qwen/Qwen3-1.7B", "diffing.methods": {"kl": {}}},
    ),
    ("organism=cake_bake model=qwen3_1_7B organism_variant=mix1-0p5", {"organism_variant": "mix1-0p5"}),
    ("organism_variant=CAFT", {"organism_variant": "CAFT"}),
    ("organism_variant=full", {"variant.adapter_id": None}),
    (
        "diffing/method=activation_difference_lens diffing.method.n=256 diffing.method.batch_size=16",
        {"diffing.methods": {"activation_difference_lens": {"positions": 256}}, "diffing.batch_size": 16},
    ),
    ("diffing.evaluation.agent.enabled=true", {"diffing.evaluation.agent.enabled": True}),
    ("layers=[0.25]", {"preprocessing.layers": (0.25,), "diffing.methods": {"diff_mining": {"layer": 0.25}}}),
    ("model.dtype=bfloat16 model.attn_implementation=flash_attention_2", {"model.dtype": "bfloat16"}),
    ("model.has_enable_thinking=true model.disable_compile=true", {"model.has_enable_thinking": True}),
]


def at(config: RunConfig, dotted: str) -> Any:
    found: Any = config
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("words", "wanted"), SEED, ids=[words for words, _ in SEED])
def test_the_words_of_the_seed_do_what_they_say(words: str, wanted: dict[str, Any]):
    config = compose_run(words.split())
    assert {dotted: at(config, dotted) for dotted in wanted} == wanted
    assert config.notes == ()


@pytest.mark.parametrize(
    "name",
    ["activation_oracle", "weight_amplification"],
)
def test_a_method_that_is_not_built_yet_is_told_as_such(name: str):
    (problem,) = told(f"diffing/method={name}")
    assert f"The method '{name}' is not built yet. There are: activation_analysis, " in problem


def test_a_method_that_cannot_do_without_an_option_asks_for_it_by_its_name():
    (problem,) = told("diffing/method=feature_rates")
    assert "diffing.method.sae=FOLDER" in problem


# -- what is typed over files ------------------------------------------------------------------------------------------


def test_later_words_win_over_earlier_ones_and_over_files():
    config = compose_run(
        ["data=c4", "seed=1", "data.context_len=64", "seed=2", "data.max_samples=null", "out=there"]
    )
    assert (config.seed, config.data.id, config.data.subset) == (2, "allenai/c4", "en")
    assert (config.data.context_len, config.data.max_samples) == (64, None)
    assert config.infrastructure.storage.base_dir == "there"


def test_a_text_that_looks_like_a_number_stays_as_it_was_typed():
    config = compose_run(
        ["model.revision=1e10", "infrastructure.slurm.account=007", "nulls=train", "rules=[1,a]"][:3]
    )
    assert (config.model.revision, config.infrastructure.slurm.account) == ("1e10", "007")
    assert config.nulls == ("train",)


def test_methods_share_a_run_and_an_option_goes_to_each_that_has_it():
    words = [
        "diffing/method=[kl,diff_mining,token_depth]",
        "diffing.method.positions=10",
        "diffing.method.diff_mining.rows=7",
    ]
    methods = compose_run(words).diffing.methods
    assert methods == {"kl": {"positions": 10}, "diff_mining": {"rows": 7}, "token_depth": {"positions": 10}}
    assert told("diffing/method=kl", "diffing.method.diff_mining.rows=7") == [
        "'diffing.method.diff_mining.rows=7': the method 'diff_mining' is not chosen, but kl."
    ]


def test_a_fine_tune_can_be_typed_whole():
    given = "organism.finetuned_models.gpt2.mine={adapter_id:me/a,revision:abc}"
    config = compose_run(["organism=cake_bake", "model=gpt2", "organism_variant=mine", given])
    assert (config.variant.source, config.variant.revision) == ("me/a", "abc")
    assert "gemma3_1B" in config.organism.finetuned_models


def test_a_method_named_twice_runs_once():
    assert compose_run(["diffing/method=[kl,kl]"]) == compose_run(["diffing/method=kl"])


def test_an_option_at_its_default_is_the_same_as_none():
    assert compose_run(["diffing/method=kl", "diffing.method.passages=8"]) == compose_run(
        ["diffing/method=kl"]
    )


def test_several_layers_are_a_sweep_for_a_method_that_reads_at_one():
    (problem,) = told("diffing/method=activation_difference_lens", "layers=[0.25,0.5]")
    assert "reads at one layer; sweep it, as in --multirun diffing.method.layer=0.25,0.5." in problem
    assert compose_run(["diffing/method=kl", "layers=[0.25,0.5]"]).preprocessing.layers == (0.25, 0.5)


def test_what_is_composed_can_be_written_and_read(tmp_path: Path):
    config = compose_run(["diffing/method=kl", "diffing.method.passages=3", "data=es", "system=be brief"])
    shown = yaml.safe_load(as_yaml(config))
    assert shown["diffing"]["methods"] == {"kl": {"passages": 3, "positions": 64}}
    assert shown["organism"]["finetuned_models"] == {"gemma3_1B": {"default": shown["variant"]}}
    assert (shown["system"], shown["data"]["subset"]) == ("be brief", "es")


def test_options_with_defaults_are_those_of_the_method():
    for name, card in METHODS.items():
        assert card.config(**all_options(name, {})) == card.config()


# -- what is told ------------------------------------------------------------------------------------------------------

TYPOS = [
    ("organism=cake_bak", "There is no organism 'cake_bak'. Did you mean 'cake_bake'?"),
    ("organism=zzz", "There is no organism 'zzz'. `finetrace list organisms` shows all"),
    ("model=qwen3_1.7B", "There is no model 'qwen3_1.7B'. Did you mean 'qwen3_1_7B'?"),
    ("model=gpt2", "The organism 'cake_bake' was not trained on 'gpt2'. There are: gemma3_1B, llama32_1B"),
    ("organism_variant=mix1-05", "no variant 'mix1-05' on 'gemma3_1B'. Did you mean 'mix1-0p5'? There are: CAFT, default"),
    ("diffing/method=kll", "There is no method 'kll'. Did you mean 'kl'? Known: activation_analysis, "),
    ("diffing/method=[]", "diffing/method is []; it takes a name, or several as in [kl,diff_mining]."),
    ("diffing.method.topk=3", "The method 'diff_mining' has no option 'topk'. Did you mean 'top_k'?"),
    ("diffing.method.top_k=many", "diff_mining.top_k is 'many'; it takes a whole number."),
    ("diffing.method.top_k=0", "diff_mining.top_k is 0; it is at least 1."),
    ("diffing.method.ordering=up", "diff_mining.ordering is 'up'; it is one of combined, "),
    ("difing/method=kl", "There is no group 'difing/method'. Did you mean 'diffing/method'?"),
    ("method=kl", "methods are chosen by diffing/method=NAME"),
    ("organsim=cake_bake", "There is no setting 'organsim'. Did you mean 'organism'?"),
    ("pipeline.mod=full", "There is no 'pipeline.mod'. Did you mean 'pipeline.mode'?"),
    ("pipeline.mode=difing", "pipeline.mode is 'difing'; it is one of full, preprocessing, diffing, evaluation, no_evaluation. Did you mean 'diffing'?"),
    ("data=my/texts.jsonl", "chosen by name, without folders; a file or hub data set of your own is data.id=PATH."),
    ("organism=null", "organism is None; one is chosen by its name, as in organism=NAME."),
    ("diffing.method.steering.enabled=true", "diffing.method.steering.enabled cannot be done: it is not built yet."),
    ("model.steering_vector=x", "model.steering_vector cannot be done: models are read as they are"),
    ("data=finweb", "There is no data 'finweb'. Did you mean 'fineweb'?"),
    ("data.contextlen=5", "There is no 'data.contextlen'. Did you mean 'data.context_len'?"),
    ("data.context_len=1", "data.context_len is 1; it is at least 2."),
    ("data=tinyworld", "data=tinyworld belongs to the base tinyworld, and this is gemma3_1B: use data=bundled."),
    ("infrastructure=locl", "Did you mean 'local'?"),
    ("infrastructure.ray.worker=2", "Did you mean 'infrastructure.ray.workers'?"),
    ("diffing.evaluation.agent.enable=true", "Did you mean 'diffing.evaluation.agent.enabled'?"),
    ("diffing.evaluation.agent.enabled=often", "diffing.evaluation.agent.enabled is 'often'; it takes true or false."),
    ("seed=x", "seed is 'x'; it takes a whole number."),
    ("seed=1.5", "seed is 1.5; it takes a whole number."),
    ("sed=1", "There is no setting 'sed'. Did you mean 'seed'?"),
    ("dose=null", "dose is None; it takes true or false."),
    ("preprocessing.layers=[-1]", "a layer is relative, from 0 (first) to 1 (last), or a whole number."),
    ("preprocessing=full", "preprocessing has settings of its own; name one, as in preprocessing.KEY=VALUE."),
    ("organism.type=[a]", "organism.type is ['a']; it takes a text."),
    ("recipe=seed000_tinyworld", "recipes are for training, as in `finetrace train recipe=seed000_tinyworld`."),
    ("hydra.launcher.partition=gpu", "clusters are infrastructure=ray or slurm"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "said"), TYPOS, ids=[word for word, _ in TYPOS])
def test_a_slip_is_told_with_what_was_meant(word: str, said: str):
    (problem,) = told(word)
    assert said in problem


def test_several_slips_are_told_at_once():
    words = ["organism=cake_bak", "diffing/method=[kl,nope]", "seed=x", "data.split=[a]", "pipeline.mode=no", "kl", "data.id=a", "x=1,2"]  # fmt: skip
    problems = told(*words)
    for said in (
        "'cake_bake'",
        "'nope'",
        "seed is 'x'",
        "data.split",
        "pipeline.mode",
        "'kl' is no setting",
        "'x=1,2'",
    ):
        assert len([problem for problem in problems if said in problem]) == 1, said
    assert len(problems) == 7


def test_a_problem_is_told_though_an_organism_has_none():
    assert (
        len(told("organism=nope", "model=nope", "diffing/method=nope", "data=nope", "infrastructure=nope"))
        == 5
    )


def test_composing_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from finetrace.config import compose_run, compose\n"
        "compose_run(['diffing/method=[kl,activation_difference_lens]', 'seed=1'])\n"
        "compose(['recipe=seed000_tinyworld'])\n"
        "print([one for one in ('torch', 'transformers', 'peft', 'datasets', 'numpy', 'huggingface_hub') if one in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
