"""The diffing-toolkit's files for the methods on hidden states: each of their keys is taken, said to be unused, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetrace.config import compose_run, gather_run
from finetrace.config.methods import all_options
from finetrace.config.peer import METHOD_MOVED, MOVED, unused_option
from finetrace.config.reading import flat

# Every key of its schema for the method, on one line a block.
SOURCES = """\
layers: null
datasets:
  use_chat_dataset: true
  use_pretraining_dataset: true
  use_training_dataset: true
  normalization: {enabled: %s, subsample_size: 1_000_000, batch_size: 4096, cache_dir: "${x.y}/z", target_rms: 100.0}
"""
STREAM = "num_samples: 150_000_000, local_shuffling: true, local_shuffling_shard_size: 1_000_000, workers: 16, overwrite: false"
LATENTS = """\
optimization: {resample_steps: null, warmup_steps: 1000}
upload: {model: true}
analysis:
  enabled: true
  latent_scaling: {enabled: true, targets: [base_error, ft_activation], num_samples: 9, batch_size: 128, num_workers: 4,
    device: cuda, dtype: float32, num_effective_ft_only_latents: 5000, dataset_split: train, overwrite: false,
    compute_base_only: false, num_effective_base_only_latents: 5000}
  latent_activations: {enabled: true, split: train, upload_to_hub: false, n_max_activations: 100, min_threshold: 1e-4,
    max_num_samples: 50000, overwrite: false, cache_device: cuda}
  latent_steering: {enabled: true, overwrite: false, prompts_file: some.txt, target_column: dec_norm_diff, k: 10,
    largest: false, max_new_tokens: 512, max_length: 512, temperature: 1.0, do_sample: false, device: cuda,
    use_chat_formatting: true, enable_thinking: false, steering_factors_percentages: [-0.5, 1.5],
    steering_modes: [all_tokens, prompt_only]}
"""
FILES = {
    "crosscoder": f"""\
# @package diffing.method
name: crosscoder
requires_preprocessing: true
training: {{expansion_factor: 32, batch_size: 2048, epochs: 2, lr: 1e-4, max_steps: null, validate_every_n_steps: 10000,
  mu: 1e-1, k: 100, k_max: 1024, k_annealing_steps: 2000, auxk_alpha: 0.03125, num_validation_samples: 5_000_000, {STREAM}}}
model: {{type: batch-top-k, code_normalization: mixed, same_init_for_all_layers: true, norm_init_scale: 1.0,
  init_with_transpose: true}}
{SOURCES % "true"}{LATENTS}""",
    "sae_difference": f"""\
# @package diffing.method
name: sae_difference
requires_preprocessing: true
training: {{target: difference_ftb, expansion_factor: 4, batch_size: 2048, epochs: 2, lr: 1e-4, encoder_init_norm: 1.0,
  max_steps: 500, validate_every_n_steps: 20000, k: 100, num_validation_samples: 5_000_000, {STREAM}}}
model: {{type: batch-top-k}}
{SOURCES % "true"}{LATENTS}""",
    "pca": f"""\
# @package diffing.method
name: pca
requires_preprocessing: true
training: {{target: difference_ftb, batch_size: 32768, n_components: 12, {STREAM}}}
{SOURCES % "false"}  ignore_first_n_tokens_per_sample_during_training: 0
analysis:
  enabled: true
  max_activating_examples: {{enabled: true, n_max_activations: 100, max_num_samples: 10_000, split: train, overwrite: false}}
  component_steering: {{enabled: true, prompts_file: some.txt, k: 10, overwrite: false, max_length: 512, temperature: 1.0,
    do_sample: true, device: cuda, use_chat_formatting: true, enable_thinking: false,
    steering_factors_percentages: [-1.5, 1.5], steering_modes: [all_tokens, prompt_only]}}
""",
    "activation_analysis": """\
# @package diffing.method
name: activation_analysis
method_params: {max_samples: 50000, batch_size: 4, num_workers: 4, skip_first_n_tokens: true}
overwrite: true
datasets: {use_chat_dataset: true, use_pretraining_dataset: true, use_training_dataset: true}
analysis:
  statistics: [mean, std, median, percentiles: [25, 99], max, min]
  max_activating_examples: {num_examples: 100, include_full_messages: true, include_all_token_norms: true}
""",
}
TAKEN = {
    "crosscoder": {"expansion": 32, "batch": 2048, "epochs": 2.0, "lr": 1e-4, "k": 100, "code_norm": "mixed"},
    "sae_difference": {"expansion": 4, "batch": 2048, "epochs": 2.0, "steps": 500, "k": 100},
    "pca": {"components": 12},
    "activation_analysis": {},
}
METHODS = sorted(FILES)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peer") / "diffing" / "method"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder.parents[1]


def changed(folder: Path, method: str, old: str, new: str) -> Path:
    """A folder whose file of a method is another one in one place."""
    path = folder / "diffing" / "method" / f"{method}.yaml"
    path.parent.mkdir(parents=True)
    assert old in FILES[method]
    path.write_text(FILES[method].replace(old, new))
    return folder


def keys(method: str) -> Iterator[tuple[str, Any]]:
    values = yaml.safe_load(FILES[method])
    values.pop("name")
    return iter(flat(values).items())


def moved(method: str, key: str) -> bool:
    return key in METHOD_MOVED.get(method, {}) or f"diffing.method.{key}" in MOVED or key == "layers"


@pytest.mark.parametrize("method", METHODS)
def test_a_file_from_there_is_a_run_here(own: Path, method: str):
    config = compose_run(["organism=cake_bake", f"diffing/method={method}"], own)
    assert config.diffing.methods == {method: TAKEN[method]}
    if method == "activation_analysis":
        assert (config.data.max_samples, config.diffing.batch_size) == (50000, 4)


@pytest.mark.parametrize("method", METHODS)
def test_each_key_of_a_file_is_decided(method: str):
    for key, value in keys(method):
        assert moved(method, key) or unused_option(method, key, value, typed=False) is not None, key


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_used_is_said_once_and_by_its_own_name(own: Path, method: str):
    notes = compose_run(["organism=cake_bake", f"diffing/method={method}"], own).notes
    said = [note.split(": ")[1].removesuffix(" has no use here") for note in notes if note.startswith(method)]
    assert len(said) == len(set(said))
    for key, value in keys(method):
        found = unused_option(method, key, value, typed=False)
        if not moved(method, key) and found and found[1] and value not in (None, 0, 0.0):
            assert found[0] in said, key
    assert not {"training", "analysis", "model", "optimization", "layers", "training.target"} & set(said)


def test_every_kind_and_code_norm_there_is_one_here_or_is_refused(tmp_path: Path):
    words = ["organism=cake_bake", "diffing/method=crosscoder"]
    relu = compose_run([*words, "diffing.method.model.type=relu"], None).diffing.methods["crosscoder"]
    assert relu == {"kind": "relu"}
    same = compose_run([*words, "diffing.method.model.type=batch-top-k"], None).diffing.methods["crosscoder"]
    assert all_options("crosscoder", same)["kind"] == "batch_topk"
    for norm in ("crosscoder", "sae", "mixed", "decoupled"):
        found = compose_run([*words, f"diffing.method.model.code_normalization={norm}"], None)
        assert all_options("crosscoder", found.diffing.methods["crosscoder"])["code_norm"] == norm
    _, problems = gather_run(words, changed(tmp_path, "crosscoder", "mixed", "none"))
    assert problems == ["crosscoder.code_norm is 'none'; it takes one of crosscoder, sae, mixed, decoupled."]


@pytest.mark.parametrize("method", ["pca", "sae_difference"])
def test_another_target_is_refused_in_a_file_and_by_a_word(tmp_path: Path, method: str):
    words = ["organism=cake_bake", f"diffing/method={method}"]
    _, problems = gather_run(words, changed(tmp_path, method, "difference_ftb", "difference_bft"))
    (problem,) = problems
    assert problem.startswith(
        f"{method}.yaml: training.target cannot be done: directions are of tuned - base;"
    )
    _, (problem,) = gather_run([*words, "diffing.method.training.target=base"])
    assert problem.startswith("diffing.method.training.target cannot be done:")
    assert not compose_run([*words, "diffing.method.training.target=difference_ftb"]).notes


def test_words_from_there_set_options_or_are_answered():
    words = ["organism=cake_bake", "diffing/method=crosscoder"]
    found = compose_run([*words, "diffing.method.training.k=50", "diffing.method.training.lr=1e-3"])
    assert found.diffing.methods == {"crosscoder": {"k": 50, "lr": 1e-3}}
    (note,) = compose_run([*words, "diffing.method.training.mu=0.5"]).notes
    assert note.endswith("the L1 term is in other units here, and diffing.method.l1 is its weight.")
    _, problems = gather_run([*words, "diffing.method.analysis.latent_steering.enabled=true"])
    assert problems == [
        "diffing.method.analysis.latent_steering.enabled cannot be done: it is not built yet."
    ]
    _, (problem,) = gather_run([*words, "diffing.method.training.expansion=3"])
    assert problem.startswith("The method 'crosscoder' has no option 'training.expansion'.")


def test_a_crosscoder_from_there_is_told_that_it_is_not_plain_here(own: Path, tmp_path: Path):
    words = ["organism=cake_bake", "diffing/method=crosscoder"]
    (note,) = [note for note in compose_run(words, own).notes if "Delta" in note]
    assert note.endswith("with diffing.method.delta=0 diffing.method.exclusive=0.")
    plain = changed(tmp_path, "crosscoder", "name: crosscoder", "name: crosscoder\ndelta: 0\nexclusive: 0")
    assert not [note for note in compose_run(words, plain).notes if "Delta" in note]


def test_a_layer_of_a_file_is_the_layer_that_is_read(tmp_path: Path):
    found = compose_run(
        ["organism=cake_bake", "diffing/method=crosscoder"],
        changed(tmp_path / "one", "crosscoder", "layers: null", "layers: [0.5]"),
    )
    assert found.diffing.methods["crosscoder"]["layer"] == 0.5
    found = compose_run(
        ["organism=cake_bake", "diffing/method=pca"],
        changed(tmp_path / "two", "pca", "layers: null", "layers: [0.25, 0.5]"),
    )
    assert found.diffing.methods["pca"]["layers"] == (0.25, 0.5)
