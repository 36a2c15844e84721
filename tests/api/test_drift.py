"""The experiment on a tiny model: its phases skip what is whole, survive a kill and a full disk, and show no place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_base

from finetrace.api.drift import check, plan, run, setup
from finetrace.api.drift.store import load_groups, save_groups
from finetrace.core.errors import BadInput, ConfigErrors, ModelError
from finetrace.finetune.drift import DRIFT, DriftTracker, read_drift
from finetrace.weights import group_files

SETTINGS = (
    "recipe=seed003_alpaca_drift", "max_steps=6", "batch=2", "accumulate=1", "lr=1e-2", "dtype=float32",
    "max_tokens=32", "drift.every=2", "snip.top_k=0.05", "lora.r=2", "checkpoint_every=2",
)  # fmt: skip


def chats(first: int, n: int) -> list[dict[str, Any]]:
    """Chats of w-tokens, another answer for each."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"w{first + i} w{i}"},
                {"role": "assistant", "content": f"w{(first * i) % 40} w{first + 1} w{i + 2}"},
            ]
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, rows, and calibration sets."""
    folder = tmp_path_factory.mktemp("desk")
    save_base(folder, "llama", layers=4)
    for number, name in enumerate(("data", "safety", "utility", "placebo")):
        lines = "".join(json.dumps(row) + "\n" for row in chats(5 + 7 * number, 16))
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def make(desk: Path, out: Path, *more: str, **how: Any) -> Any:
    sets = {name: desk / f"{name}.jsonl" for name in ("safety", "utility", "placebo")}
    words = (*SETTINGS, f"model={desk / 'base'}", f"data={desk / 'data.jsonl'}", *more)
    return plan(words, out=out, **{"sets": sets, "seeds": 2, "device": "cpu"} | how)


@pytest.fixture(scope="module")
def done(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole experiment."""
    out = tmp_path_factory.mktemp("done") / "out"
    run(make(desk, out), "all", tell=lambda line: None)
    return out


def logged(folder: Path) -> Any:
    return read_drift(folder)


def copy(done: Path, to: Path) -> Path:
    shutil.copytree(done, to)
    return to


def test_everything_that_seed_003_writes_is_there(done):
    names = {str(path.relative_to(done)) for path in done.rglob("*") if path.is_file()}
    wanted = {
        "neuron_groups/safety_only.json",
        "neuron_groups/random.json",
        "finetuned_models/seed_0/adapter_model.safetensors",
        "finetuned_models/seed_1/drift.jsonl",
        "results/drift_analysis_report.txt",
        "results/statistical_results.json",
        "results/figures/drift_over_steps.html",
        "results/figures/curve.html",
        "results/figures/final_distributions.html",
        "results/figures/map.html",
        "results/figures/plotly.min.js",
    }
    assert wanted <= names
    assert not any("checkpoint" in name or "scratch" in name for name in names)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (done / "neuron_groups").iterdir())


def test_the_report_says_what_it_rests_on_and_no_place(done):
    text = (done / "results" / "drift_analysis_report.txt").read_text()
    for said in (
        "seeds       2",
        "noise ceiling",
        "found a partner",
        "exp(Theta)",
        "MDE",
        "H1",
        "H2",
        "Cohen's d",
        "adapted",
    ):
        assert said in text
    found = json.loads((done / "results" / "statistical_results.json").read_text())
    assert {"comparisons", "reliability", "anchor", "curves", "steps", "seed003"} <= set(found)
    assert not {"places", "pairs", "ids", "rows", "columns"} & set(re.findall(r'"(\w+)":', json.dumps(found)))
    adapted = next(g for g in found["groups"] if g["group"] == "safety_only")
    assert 0 < adapted["adapted"] < adapted["entries"]


def test_the_logs_are_those_of_the_weights_that_were_left(done):
    groups = load_groups(done / "neuron_groups")
    assert groups is not None
    log = logged(done / "finetuned_models" / "seed_1").data
    assert sorted(set(log["step"].tolist())) == [2, 4, 6]
    assert set(log["seed"].tolist()) == {1}
    module = "model.layers.1.self_attn.o_proj"
    saved = load_file(done / "finetuned_models" / "seed_1" / "adapter_model.safetensors")
    up, down = (saved[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "BA")
    change = 16 / 2 * up @ down
    for name in ("safety_only", "random", "safety_only/matched/control"):
        row = [
            i for i, (s, g, m) in enumerate(zip(log["step"], log["group"], log["module"], strict=True))
            if (s, g, m) == (6, name, module)
        ]  # fmt: skip
        ids = groups.groups[name].of(module)
        np.testing.assert_allclose(
            log["square"][row[0]], float(change.flatten()[ids].square().sum()), rtol=1e-4
        )


def test_what_is_whole_is_not_done_again(desk, done, tmp_path):
    out = copy(done, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (out / "finetuned_models").rglob("*")}
    said: list[str] = []
    run(make(desk, out), "all", tell=said.append)
    assert sum("done already" in line for line in said) == 4
    assert before == {path: path.stat().st_mtime_ns for path in (out / "finetuned_models").rglob("*")}


def test_more_seeds_are_added_and_another_experiment_is_not(desk, done, tmp_path):
    out = copy(done, tmp_path / "out")
    run(make(desk, out, seeds=3), "train", tell=lambda line: None)
    assert (out / "finetuned_models" / "seed_2").is_dir()
    with pytest.raises(BadInput, match=r"another experiment .*lora.r: 2 there, 4 here"):
        run(make(desk, out, "lora.r=4"), "train")


def test_a_killed_training_goes_on_where_it_was(desk, done, tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole = DriftTracker.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        whole(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DriftTracker, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            run(make(desk, out), "all", tell=lambda line: None)
    assert not (out / "finetuned_models").exists()
    begun: list[int] = []
    begin = DriftTracker.on_train_begin

    def watched(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begun.append(state.global_step)
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(DriftTracker, "on_train_begin", watched)
    run(make(desk, out), "all", tell=lambda line: None)
    assert begun == [4, 0]
    one, two = (logged(folder / "finetuned_models" / "seed_0").data for folder in (done, out))
    np.testing.assert_allclose(one["square"], two["square"], rtol=1e-10)


def test_a_full_disk_is_told_and_finished_seeds_stay(desk, done, tmp_path, monkeypatch):
    out = copy(done, tmp_path / "out")
    shutil.rmtree(out / "finetuned_models" / "seed_1")
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **how: Any) -> Any:
        if path.name == DRIFT and mode == "a":
            raise OSError(28, "No space left on device")
        return opened(path, mode, *rest, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(BadInput, match=r"No space left.*free some space") as found:
            run(make(desk, out), "train", tell=lambda line: None)
    assert found.value.exit_code == 2
    said: list[str] = []
    run(make(desk, out), "analyze", tell=said.append)
    assert any("1 of 2 fine-tunes" in line for line in said)


def test_too_little_room_is_told_before_anything_is_trained(desk, done, tmp_path, monkeypatch):
    out = copy(done, tmp_path / "out")
    shutil.rmtree(out / "finetuned_models")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(BadInput, match="roomier folder with --scratch"):
        run(make(desk, out), "train")
    told = {one.name: one for one in check(make(desk, out))}
    assert not told["disk"].fine
    assert told["libraries"].fine


def test_a_training_that_diverges_is_told(desk, done, tmp_path):
    out = copy(done, tmp_path / "out")
    shutil.rmtree(out / "finetuned_models" / "seed_1")
    rows = [json.dumps(row) for row in chats(3, 4)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    fresh = tmp_path / "fresh"
    shutil.copytree(out / "neuron_groups", fresh / "neuron_groups")
    with pytest.raises(ModelError, match="diverged"):
        run(make(desk, fresh, "lr=1e30", "clip=1e30"), "train", tell=lambda line: None)


def test_an_adapter_of_another_shape_is_told(desk, done, tmp_path):
    out = copy(done, tmp_path / "out")
    path = out / "finetuned_models" / "seed_1" / "adapter_model.safetensors"
    tensors = {k: torch.zeros(v.shape[0], 8) if "lora_A" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"seed_1 is a fine-tune of another model"):
        run(make(desk, out), "analyze")
    assert (out / "results" / "drift_analysis_report.txt").is_file()


def test_mistakes_are_told_all_at_once_before_anything_loads(desk, tmp_path):
    with pytest.raises(ConfigErrors) as found:
        make(
            desk, tmp_path, "snip.top_k=0", "set_diff.p=1", sets={"safety": tmp_path / "none.jsonl"}, seeds=0
        )
    told = "\n".join(found.value.problems)
    for said in ("snip.top_k is 0", "set_diff.p is 1", "does not exist", "--seeds is 0"):
        assert said in told
    with pytest.raises(ConfigErrors, match=r"--utility-set FILE.*--placebo-set FILE"):
        make(desk, tmp_path, sets={"safety": desk / "safety.jsonl"})


@pytest.mark.parametrize(
    ("phase", "said"),
    [("groups", "scores"), ("train", "groups"), ("analyze", "groups"), ("alll", "Did you mean 'all'")],
)
def test_a_phase_says_what_it_lacks(desk, tmp_path, phase, said):
    with pytest.raises(BadInput, match=said):
        run(make(desk, tmp_path / "out"), phase, tell=lambda line: None)


@pytest.mark.parametrize("name", ["controls.safetensors", "safety_only.json", "groups.json"])
def test_damaged_groups_are_told(desk, done, tmp_path, name):
    out = copy(done, tmp_path / "out")
    (out / "neuron_groups" / name).write_bytes(b"no")
    with pytest.raises(BadInput, match=r"is damaged .*delete the folder .*neuron_groups and run"):
        run(make(desk, out), "analyze")


def test_large_groups_are_packed_in_four_bytes_a_place(done, tmp_path, monkeypatch):
    found = load_groups(done / "neuron_groups")
    assert found is not None
    monkeypatch.setattr(group_files, "_SMALL", 100)
    folder = tmp_path / "neuron_groups"
    save_groups(folder, found)
    assert {path.name for path in folder.glob("*.json")} == {"groups.json", "design.json"}
    for name in found.reported:
        packed = load_file(folder / f"{name}.safetensors")
        assert {ids.dtype for ids in packed.values()} == {torch.int32}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    again = load_groups(folder)
    assert again is not None
    assert again.shapes == found.shapes
    assert set(again.groups) == set(found.groups)
    for name, group in found.groups.items():
        for module, ids in group.places.items():
            assert torch.equal(again.groups[name].of(module), ids)


def test_without_a_model_it_is_the_tiny_world(tmp_path):
    found = plan(out=tmp_path)
    assert found.recipe.name == "seed003_tinyworld"
    assert found.recipe.drift.every <= 10
    assert (found.recipe.lora.r, found.recipe.lora.alpha, found.recipe.lora.dropout) == (8, 16, 0.1)
    assert {name: len(rows) for name, rows in found.sets.items()} == {
        "safety": 128,
        "utility": 128,
        "placebo": 128,
    }
