"""DriftTracker in other people's trainers: its sums are those of dense matrices, and a resumed log is the unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.tiny import tiny_model, tiny_tokenizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from finetrace.core.errors import BadInput, ModelError
from finetrace.finetune.drift import ALL, DRIFT, INITIAL, DriftTracker, read_drift
from finetrace.weights.groups import Group
from finetrace.weights.read import matrices

Q0, O1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
DOWN = "model.layers.0.mlp.down_proj"
GROUPS = {
    "some": Group("some", "entries", {Q0: torch.tensor([0, 5, 31, 32, 900]), DOWN: torch.tensor([3, 70])}),
    "many": Group("many", "entries", {Q0: torch.arange(0, 1024, 2), O1: torch.arange(100)}),
    "whole rows": Group("whole rows", "rows", {O1: torch.tensor([1, 30])}),
}


def lora(**how: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", **how)
    return get_peft_model(tiny_model("llama"), config)


def rows() -> Any:
    ids = torch.arange(3, 51).reshape(6, 8)
    return [
        {"input_ids": row, "labels": row, "attention_mask": torch.ones(8, dtype=torch.long)} for row in ids
    ]


def fit(model: Any, out: Path, *callbacks: Any, steps: int = 6, resume: bool = False, **more: Any) -> None:
    arguments: Any = {
        "output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 0.01,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False, "logging_strategy": "no",
    }  # fmt: skip
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments | more),
        train_dataset=rows(),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume or None)


def dense(model: Any) -> dict[str, torch.Tensor]:
    """The effective weight of every matrix, in float64."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(".lora_A") or not name.endswith(("_proj",)):
            continue
        plain = name.removeprefix("base_model.model.")
        inner = module.get_base_layer() if "lora_A" in dict(module.named_children()) else module
        weight = inner.weight.detach().double()
        if inner is not module:
            merged = module.get_delta_weight("default").detach().double()
            weight = weight + merged
            if module.use_dora["default"]:
                length = weight.norm(dim=1, keepdim=True)
                weight = (
                    weight
                    * module.lora_magnitude_vector["default"].weight.detach().double()[:, None]
                    / length
                )
        found[plain] = weight
    return found


def logged(folder: Path) -> Any:
    return read_drift(folder)


def sums(before: Any, after: Any, group: str, module: str) -> tuple[float, float, float, int]:
    old, new = before[module].flatten(), after[module].flatten()
    if group != ALL:
        ids = GROUPS[group].of(module)
        if GROUPS[group].unit == "rows":
            ids = (ids[:, None] * before[module].shape[1] + torch.arange(before[module].shape[1])).flatten()
        old, new = old[ids], new[ids]
    moved = new - old
    return float(moved.square().sum()), float(old.square().sum()), float((old * moved).sum()), len(old)


def check(log: Any, before: Any, after: Any, *, rtol: float = 1e-5) -> None:
    """The last step of a log, against dense matrices."""
    data, last = log.data, max(log.data["step"])
    total = 0.0
    for i in np.flatnonzero(data["step"] == last):
        square, weight, dot, n = sums(before, after, data["group"][i], data["module"][i])
        assert data["n"][i] == n
        np.testing.assert_allclose(data["square"][i], square, rtol=rtol)
        np.testing.assert_allclose(data["weight_square"][i], weight, rtol=1e-6)
        if not np.isnan(data["dot"][i]):
            np.testing.assert_allclose(data["dot"][i], dot, rtol=1e-4, atol=1e-5 * (square * weight) ** 0.5)
        total += square if data["group"][i] == ALL else 0.0
    if not np.isnan(data["total"][-1]):
        np.testing.assert_allclose(data["total"][-1], total**0.5, rtol=rtol)


@pytest.mark.parametrize(
    "how", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": False}, {"init_lora_weights": False, "use_dora": True}]
)  # fmt: skip
def test_adapters_in_a_transformers_trainer(tmp_path, how):
    model = lora(**how)
    before = dense(model)
    fit(model, tmp_path, DriftTracker(GROUPS, every=4))
    log = logged(tmp_path)
    assert sorted(set(log.data["step"].tolist())) == [4, 6]
    adapted = {"some": 1, "many": 2, "whole rows": 1, ALL: 4}
    assert {g: log.data["group"].count(g) for g in adapted} == {g: 2 * n for g, n in adapted.items()}
    check(log, before, dense(model), rtol=1e-4 if how.get("use_dora") else 1e-5)
    assert not (tmp_path / INITIAL).exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_fine_tune(tmp_path, whole):
    model = tiny_model("llama")
    before = dense(model)
    fit(model, tmp_path, DriftTracker(GROUPS, every=3, whole=whole, seed=7))
    log = logged(tmp_path / DRIFT)
    assert (ALL in log.data["group"]) == whole
    assert np.isnan(log.data["total"]).all() != whole
    assert set(log.data["seed"]) == {7}
    check(log, before, dense(model))
    assert len(set(log.data["module"])) == (14 if whole else 3)


def test_without_inner_products_the_rest_is_the_same(tmp_path):
    for name, dots in (("with", True), ("without", False)):
        fit(lora(), tmp_path / name, DriftTracker(GROUPS, every=2, dots=dots))
    one, two = read_drift(tmp_path / "with").data, read_drift(tmp_path / "without").data
    np.testing.assert_array_equal(one["square"], two["square"])
    assert np.isnan(two["dot"]).all()
    assert np.isfinite(one["dot"]).all()


def test_a_trl_trainer(tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = tiny_model("llama")
    config = SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", bf16=False, dataloader_pin_memory=False, max_length=32, learning_rate=0.01,
        logging_strategy="no",
    )  # fmt: skip
    texts = Dataset.from_list([{"text": f"w{n} w{n + 1} w{n + 2} w{n + 3}"} for n in range(6)])
    tracker = DriftTracker(GROUPS, every=1)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=texts,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
        callbacks=[tracker],
    )
    before = dense(trainer.model)
    trainer.train()
    log = logged(tmp_path)
    assert sorted(set(log.data["step"].tolist())) == [1, 2, 3]
    check(log, before, dense(trainer.model))


class Killed(TrainerCallback):
    """Ends the process's work in the middle, after the checkpoint of step 4."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", [{}, {"init_lora_weights": False}])
def test_a_killed_training_goes_on_in_the_same_log(tmp_path, how):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": False}
    fit(lora(**how), tmp_path / "whole", DriftTracker(GROUPS), **saving)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(lora(**how), broken, DriftTracker(GROUPS), Killed(), **saving)
    path = broken / DRIFT
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 5
    with path.open("a") as stream:
        stream.write('{"step":6,"squ')  # cut short
    fit(lora(**how), broken, DriftTracker(GROUPS), resume=True, **saving)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]]
    assert steps == [1, 2, 3, 4, 5, 6]
    one, two = logged(tmp_path / "whole").data, logged(broken).data
    for name in ("square", "dot", "weight_square"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-12, err_msg=name)


def test_what_it_began_with_cannot_be_lost_unseen(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(lora(init_lora_weights=False), tmp_path, DriftTracker(GROUPS), Killed(), **saving)
    (tmp_path / INITIAL).unlink()
    with pytest.raises(BadInput, match="what the weights were at the beginning"):
        fit(lora(init_lora_weights=False), tmp_path, DriftTracker(GROUPS), resume=True, **saving)


def test_a_log_of_other_groups_is_not_gone_on_with(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(lora(), tmp_path, DriftTracker(GROUPS), Killed(), **saving)
    with pytest.raises(BadInput, match="other groups"):
        fit(lora(), tmp_path, DriftTracker({"some": GROUPS["many"]}), resume=True, **saving)


def test_a_new_training_in_the_folder_begins_a_new_log(tmp_path):
    for _ in range(2):
        fit(lora(), tmp_path, DriftTracker(GROUPS), steps=2)
    assert sorted(set(logged(tmp_path).data["step"].tolist())) == [1, 2]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(BadInput, match="every 1 or more"):
        DriftTracker({}, every=0)
    with pytest.raises(BadInput, match="another name"):
        DriftTracker({ALL: GROUPS["some"]})
    other = {"far": Group("far", "entries", {Q0: torch.tensor([1024])})}
    with pytest.raises(BadInput, match="beyond its 32 x 32"):
        fit(lora(), tmp_path, DriftTracker(other), steps=1)
    with pytest.raises(BadInput, match="which this model has not"):
        fit(lora(), tmp_path, DriftTracker({"x": Group("x", "entries", {"h.0": torch.tensor([1])})}), steps=1)
    frozen = tiny_model("llama").requires_grad_(False)
    frozen.model.norm.weight.requires_grad_(True)
    with pytest.raises(BadInput, match="No matrix"):
        fit(frozen, tmp_path, DriftTracker({}), steps=1)
    with pytest.raises(BadInput, match="no drift log"):
        read_drift(tmp_path / "nothing")


def test_a_full_disk_is_told_and_what_was_measured_stays(tmp_path, monkeypatch):
    opened = Path.open

    def full(path: Path, mode: str = "r", **how: Any) -> Any:
        if path.name == DRIFT and mode == "a" and len(path.read_text().splitlines()) > 2:
            raise OSError(28, "No space left on device")
        return opened(path, mode, **how)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(BadInput, match=r"No space left.*free some space"):
        fit(lora(), tmp_path, DriftTracker(GROUPS))
    assert sorted(set(logged(tmp_path).data["step"].tolist())) == [1, 2]


def test_weights_that_are_not_finite_end_it(tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.raises(ModelError, match="diverged: at step 2"):
        fit(lora(), tmp_path, Breaks(), DriftTracker({}))


def test_matrices_of_the_model_are_named_as_groups_name_them():
    assert {Q0, O1, DOWN} <= {name for name, _ in matrices(lora())}
