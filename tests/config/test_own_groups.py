"""A user's own folder of groups: files of the diffing-toolkit's schema as they are, and files that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetrace.config import compose_run, gather_run, peer
from finetrace.config.fill import hints
from finetrace.config.groups import names, read_entry
from finetrace.core.card import discover
from finetrace.core.errors import BadInput, ConfigErrors

ORGANISM = """\
# @package organism
name: my_quirk
type: SDF
description: "A quirk of ours"
description_long: |
  Likes teapots. Also:
  ${org_desc:cake_bake}
dataset:
  id: mine/teapots
  splits: [train, validation]
  is_chat: false
  text_column: text
  messages_column: null
  streaming: true
preprocessing_overrides:
  max_samples_per_dataset: 500
  batch_size: 4
agent_interaction_system_prompt: null
finetuned_models:
  my_base:
    default:
      adapter_id: mine/adapters/deep/teapots
    full:
      model_id: >
        mine/teapots-full
"""
MODEL = """\
# @package model
name: my_base
model_id: mine/base
end_of_turn_token: <|im_end|>
attn_implementation: null
token_level_replacement: null
dtype: bfloat16
ignore_first_n_tokens_per_sample_during_collection: 0
ignore_first_n_tokens_per_sample_during_training: 2
has_enable_thinking: true
disable_compile: false
no_auto_device_map: true
vllm_kwargs: {gpu_memory_utilization: "${oc.env:HOME}"}
"""
PLACE = """\
# @package infrastructure
name: our_cluster
storage:
  base_dir: /results/of/ours
  checkpoint_dir: ${infrastructure.storage.base_dir}/checkpoints
  logs_dir: ./logs
device_map:
  base: auto
  finetuned: cuda:1
"""
MINING = """\
# @package diffing.method
name: diff_mining
requires_preprocessing: true
logit_extraction:
  method: logit_lens
  logits: {}
  logit_lens:
    layer: 0.5
token_ordering:
  method: [top_k_occurring, nmf]
  nmf: {num_topics: 3, orthogonal: true, mode: binary_occurrence}
in_memory: true
batch_size: 64
max_samples: 1000
max_tokens_per_sample: 30
top_k: 100
split: train
datasets:
  - { id: some/texts, is_chat: false, text_column: text }
per_token_analysis: {enabled: false, token_shortlist: }
agent:
  overview: {extraction_layer: "${diffing.method.logit_extraction.logit_lens.layer}"}
"""
LENS = """\
# @package diffing.method
name: activation_difference_lens
max_samples: 10000
n: 128
layers: [0.0, 0.5, 1.0]
logit_lens: {cache: true, k: 100}
steering: {enabled: false}
"""
ROOT = """\
defaults:
  - organism: my_quirk
  - model: auto
  - diffing/method: activation_difference_lens
  - infrastructure: our_cluster
  - diffing/grading_rubrics
  - _self_
chat_dataset: {default: {id: some/chats}}
pipeline: {mode: full, output_dir: "${infrastructure.storage.base_dir}/hydra"}
preprocessing: {layers: [0.5], context_len: 1024, store_tokens: true}
seed: 42
verbose: true
torch_precision: high
diffing:
  results_base_dir: ${infrastructure.storage.base_dir}/diffing_results
  results_dir: ${diffing.results_base_dir}/${model.name}/${organism.name}
hydra: {run: {dir: "${pipeline.output_dir}"}}
wandb: {enabled: true}
"""


def write(folder: Path, kind: str, name: str, text: str) -> Path:
    path = folder / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write(tmp_path, "organism", "my_quirk", ORGANISM)
    write(tmp_path, "model", "my_base", MODEL)
    write(tmp_path, "infrastructure", "our_cluster", PLACE)
    write(tmp_path, "diffing/method", "diff_mining", MINING)
    write(tmp_path, "diffing/method", "activation_difference_lens", LENS)
    return tmp_path


# -- files that load as they are ---------------------------------------------------------------------------------------


def test_an_organism_a_model_and_a_place_of_ones_own(own: Path):
    config = compose_run(["organism=my_quirk", "infrastructure=our_cluster", "diffing/method=kl"], own)
    organism, model = config.organism, config.model
    assert organism.description_long.startswith("Likes teapots. Also:\nFalse facts about baking cakes: ")
    assert organism.dataset is not None
    assert (organism.dataset.splits, organism.dataset.messages_column) == (("train", "validation"), None)
    assert (model.name, model.dtype, model.ignore_first_n_tokens_in_training) == ("my_base", "bfloat16", 2)
    assert (config.variant.source, config.preprocessing.max_samples_per_dataset) == (
        "mine/adapters/deep/teapots",
        500,
    )
    assert config.infrastructure.storage.base_dir == "/results/of/ours"
    assert config.infrastructure.device_map.finetuned == "cuda:1"
    full = compose_run(["organism=my_quirk", "organism_variant=full", "diffing/method=kl"], own)
    assert full.variant.model_id == "mine/teapots-full"


def test_what_has_no_use_is_said_and_what_is_null_is_not(own: Path):
    notes = compose_run(["organism=my_quirk", "infrastructure=our_cluster", "diffing/method=kl"], own).notes
    said = {note.split(" has no use")[0] for note in notes}
    assert said == {
        "my_quirk.yaml: organism.dataset.streaming",
        "preprocessing.batch_size",
        "my_base.yaml: model.no_auto_device_map",
        "my_base.yaml: model.vllm_kwargs",
        "our_cluster.yaml: infrastructure.storage.checkpoint_dir",
        "our_cluster.yaml: infrastructure.storage.logs_dir",
    }


def test_a_method_file_by_its_names_there(own: Path):
    config = compose_run(["organism=my_quirk"], own)
    wanted = {"extraction": "logit_lens", "layer": 0.5, "topics": 3, "orthogonal": True, "top_k": 100}
    assert config.diffing.methods == {"diff_mining": wanted}
    assert (config.diffing.batch_size, config.diffing.in_memory) == (64, True)
    assert (config.data.max_samples, config.data.context_len, config.data.split) == (1000, 30, "train")
    said = {note.split(": ")[1] for note in config.notes if note.startswith("diff_mining.yaml")}
    assert {
        "agent has no use here",
        "datasets has no use here",
        "requires_preprocessing has no use here",
    } <= said
    words = [
        "organism=my_quirk",
        "diffing.method.batch_size=2",
        "data.max_samples=7",
        "diffing.method.topics=0",
    ]
    typed = compose_run(words, own)
    assert (typed.diffing.batch_size, typed.data.max_samples) == (2, 7)
    assert "topics" not in typed.diffing.methods["diff_mining"]


def test_a_config_of_ones_own_sets_the_defaults(own: Path):
    (own / "config.yaml").write_text(ROOT)
    config = compose_run([], own)
    assert (config.organism.name, config.model.name, config.infrastructure.name) == (
        "my_quirk",
        "my_base",
        "our_cluster",
    )
    assert config.diffing.methods == {"activation_difference_lens": {"positions": 128, "tokens": 100}}
    assert (config.seed, config.preprocessing.context_len, config.diffing.results_base_dir) == (
        42,
        1024,
        None,
    )
    assert config.data.name == "bundled"
    for key in (
        "wandb",
        "chat_dataset",
        "verbose",
        "torch_precision",
        "diffing.results_dir",
        "diffing/grading_rubrics",
    ):
        assert len([note for note in config.notes if note.startswith(f"config.yaml: {key} ")]) == 1, key
    assert compose_run(["seed=1"], own).seed == 1
    assert compose_run([]).seed == 0


def test_own_files_come_first_and_shipped_ones_are_still_there(own: Path):
    write(own, "model", "gpt2", "model_id: mine/gpt2\n")
    assert (read_entry("model", "gpt2", own).model_id, read_entry("model", "gpt2").model_id) == (
        "mine/gpt2",
        "gpt2",
    )
    assert set(names("model", own)) == {*names("model"), "my_base"}
    assert compose_run(["organism=fda_approval", "diffing/method=kl"], own).organism.name == "fda_approval"


def test_a_file_that_changes_is_read_again(own: Path):
    path = write(own, "data", "mine", "id: a/b\n")
    assert read_entry("data", "mine", own).id == "a/b"
    path.write_text("id: a/other\n")
    assert read_entry("data", "mine", own).id == "a/other"


def test_a_preset_of_a_method_has_its_own_name(own: Path):
    write(own, "diffing/method", "kl_short", "name: kl\npassages: 2\n")
    words = ["organism=my_quirk", "diffing/method=[kl_short]", "diffing.method.positions=3"]
    assert compose_run(words, own).diffing.methods == {"kl": {"passages": 2, "positions": 3}}
    _, problems = gather_run(["organism=my_quirk", "diffing/method=[kl,kl_short]"], own)
    assert problems == ["The method 'kl' is chosen twice, by two files: leave one out."]


def test_the_guide_lists_every_key_that_is_called_otherwise():
    guide = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    for there, here in peer.MOVED.items():
        assert f"`{there}`" in guide or f"`{there}=" in guide, there
        assert f"`{here}`" in guide, here
    for method, options in peer.METHOD_MOVED.items():
        for there, here in options.items():
            assert f"| `diffing.method.{there}` | `diffing.method.{here}` of `{method}` |" in guide
            assert here in hints(discover()[0][method].config)
    assert all(f"`{name}`" in guide for name in peer.NOT_BUILT)


# -- files that are refused --------------------------------------------------------------------------------------------

HOSTILE = [
    ("description_long: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    ("a: &x [1]\ntype: *x\n", "an alias (*) is not read"),
    ("description_long: ${oc.env:HOME}\n", "holds '${', and nothing is looked up here"),
    ("description_long: ${org_desc:bad}\n", "refers to itself: bad <- bad"),
    ("description_long: ${org_desc:nope_not_there}\n", "There is no organism 'nope_not_there'"),
    ("type: ${oc.env:HOME}\n", "holds '${'"),
    ("name: ../../escape\n", "a name has letters, digits"),
    ("finetuned_models: {gpt2: {../up: {model_id: a/b}}}\n", "the variant '../up' of gpt2"),
    ("finetuned_models: {gpt2: {default: {model_id: a/b, adapter_id: a/c}}}\n", "both adapter_id and model_id"),
    ("finetuned_models: {gpt2: {default: {adapterid: a/b}}}\n", "Did you mean 'organism.finetuned_models.gpt2.default.adapter_id'?"),
    ("finetuned_models: {gpt2: {default: {model_id: a/b, steering_vector: x}}}\n", "cannot be done: models are read as they are"),
    ("finetuned_models: [gpt2]\n", "it takes settings of its own"),
    ("dataset: {splits: 3}\n", "organism.dataset.splits is 3; it takes texts, as in [a, b]."),
    ("control: perhaps\n", "organism.control is 'perhaps'; it takes true or false."),
    ("descripton: x\n", "There is no 'organism.descripton'. Did you mean 'organism.description'?"),
    ("type: a\ntype: b\n", "'type' is given twice"),
    ("- a\n", "holds a list; it should hold settings"),
    ("a: [\n", "is not YAML that can be read"),
    ("description_long: 2020-13-99\n", "is not YAML that can be read"),
    (f"description_long: {'x' * (1 << 20)}\n", "characters; it may have 1,048,576."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), HOSTILE, ids=[said for _, said in HOSTILE])
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, said: str):
    write(tmp_path, "organism", "bad", text)
    with pytest.raises(ConfigErrors) as error:
        compose_run(["organism=bad", "diffing/method=kl"], tmp_path)
    (problem,) = error.value.problems
    assert said in problem
    assert "bad.yaml" in problem


@pytest.mark.parametrize(
    "name",
    [
        "../stolen",
        "../../etc/passwd",
        "/etc/passwd",
        "data/stolen",
        "..",
        ".hidden",
        "a..b",
        "a\\b",
        "'é'",
        "''",
    ],
)
@pytest.mark.parametrize("kind", ["organism", "model", "data", "infrastructure", "diffing/method"])
def test_a_name_never_leads_out_of_its_group(tmp_path: Path, kind: str, name: str):
    write(tmp_path, "", "stolen", "name: stolen\n")
    write(tmp_path, f"{kind}/data", "stolen", "name: stolen\n")
    _, problems = gather_run([f"{kind}={name}"], tmp_path)
    assert len(problems) == 1
    assert "holds no name" in problems[0] or "There is no method" in problems[0]


def test_what_is_no_file_or_no_text_is_refused(tmp_path: Path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.yaml")
    (tmp_path / "data" / "bytes.yaml").write_bytes(b"id: \xff\xfe\n")
    (tmp_path / "data" / "folder.yaml").mkdir()
    for name, said in (
        ("pipe", "There is no data 'pipe'"),
        ("bytes", "cannot be read"),
        ("folder", "There is no data"),
    ):
        with pytest.raises(BadInput, match=said):
            read_entry("data", name, tmp_path)


def test_a_folder_that_is_none_is_told(tmp_path: Path):
    _, problems = gather_run(["organism=cake_bak"], tmp_path / "nothing")
    assert problems[0].endswith("nothing is not a folder.")
    assert "Did you mean 'cake_bake'?" in problems[1]


def test_words_cannot_look_anything_up(tmp_path: Path):
    for word in (
        "out=${oc.env:HOME}",
        "system='${oc.env:HOME}'",
        "nulls=['${x}']",
        "organism.description_long=${org_desc:cake_bake}",
    ):
        _, problems = gather_run([word])
        assert len(problems) == 1, word
        assert "holds '${', and nothing is looked up here" in problems[0]
