"""Whatever ends a training early, what was finished can be used, and the same call ends where it would have."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.test_trainer import RECIPE, ROWS, TRAIN, weights
from transformers import TrainerCallback

from finetrace.core.errors import BadInput, FinetraceError, ModelError
from finetrace.finetune import checkpoint
from finetrace.finetune.recipe import Data, Lora
from finetrace.finetune.trainer import train
from finetrace.models import open_pair

LONG = replace(
    RECIPE,
    lora=Lora(r=2, dropout=0.3),
    train=replace(TRAIN, max_steps=9, checkpoint_every=2, accumulate=1),
)


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, do: Any) -> None:
        self._step, self._do = step, do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._do(kwargs["model"])


@pytest.fixture(scope="module")
def base(base_of) -> Path:
    return base_of("llama")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The training that nothing interrupts."""
    return train(LONG, ROWS, tmp_path_factory.mktemp("whole"), base=base)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


KILLED = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.finetune.test_resume import LONG, ROWS, At
from finetrace.finetune.trainer import train
train(LONG, ROWS, sys.argv[1], base=sys.argv[2], callbacks=[At(5, lambda model: os.kill(os.getpid(), signal.SIGKILL))])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_after_kill_9_the_same_call_ends_in_the_same_weights(base, whole, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(base)], capture_output=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert not (tmp_path / "adapter_config.json").exists()
    (tmp_path / ".checkpoint-6.part").mkdir()
    done: list[int] = []
    found = train(LONG, ROWS, tmp_path, base=base, progress=lambda what, step, total, note: done.append(step))
    assert done == [5, 6, 7, 8, 9]
    assert found.losses == whole.losses
    assert same(tmp_path, whole.folder)
    assert not list(tmp_path.glob(".*"))


def test_no_pickle_is_written(whole):
    found = {path.suffix for path in whole.folder.rglob("*") if path.is_file()}
    assert found == {".safetensors", ".json", ".md"}
    assert len(checkpoint.checkpoints(whole.folder)) == 2


def test_ctrl_c_leaves_a_usable_adapter_and_goes_on(base, whole, tmp_path, capsys):
    press = At(5, lambda model: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    found = train(LONG, ROWS, tmp_path, base=base, callbacks=[press])
    assert signal.getsignal(signal.SIGINT) is before
    assert "Stopping after this step" in capsys.readouterr().err
    assert not found.finished
    assert found.losses == whole.losses[: len(found.losses)]
    assert len(found.losses) in (5, 6)
    assert not json.loads((tmp_path / "finetrace.json").read_text())["finished"]
    ids = torch.tensor([[1, 9, 10, 11]])
    pair = open_pair(base, tmp_path)
    with torch.no_grad():
        assert not torch.equal(pair.base(ids).logits, pair.tuned(ids).logits)
    again = train(LONG, ROWS, tmp_path, base=base)
    assert again.finished
    assert again.losses == whole.losses
    assert same(tmp_path, whole.folder)


def test_a_second_ctrl_c_ends_at_once(base, tmp_path):
    def twice(model: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(LONG, ROWS, tmp_path, base=base, callbacks=[At(3, twice)])
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2"]


def poison(model: Any) -> None:
    """The next forward gives NaN, while everything that is trained stays finite."""
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))


def test_nan_is_named_and_the_last_good_step_is_kept(base, whole, tmp_path):
    with pytest.raises(
        ModelError, match=r"diverged at step 4: the loss is nan.*train\.lr.*step 3 left is in"
    ):
        train(LONG, ROWS, tmp_path, base=base, callbacks=[At(3, poison)])
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())
    assert json.loads((tmp_path / "finetrace.json").read_text())["step"] == 3
    assert train(LONG, ROWS, tmp_path, base=base).losses == whole.losses


def test_broken_weights_are_not_left_as_a_result(base, tmp_path):
    def break_weights(model: Any) -> None:
        next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.raises(ModelError, match=r"checkpoint-2 is as it was"):
        train(LONG, ROWS, tmp_path, base=base, callbacks=[At(3, break_weights)])
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_a_full_disk_leaves_the_checkpoint_before(base, whole, tmp_path, monkeypatch):
    real, calls = checkpoint.save_optimiser, []

    def full(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_optimiser", full)
    with pytest.raises(
        FinetraceError, match=r"step 4 could not be written.*No space left.*goes on from checkpoint-2"
    ):
        train(LONG, ROWS, tmp_path, base=base)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert train(LONG, ROWS, tmp_path, base=base).losses == whole.losses


def test_another_training_is_not_overwritten(base, whole):
    other = replace(LONG, lora=Lora(r=4, dropout=0.3))
    with pytest.raises(BadInput, match=r"another training \(lora\.r was 2 and is 4\)"):
        train(other, ROWS, whole.folder, base=base)
    with pytest.raises(BadInput, match="data_hash"):
        train(LONG, ROWS[:3], whole.folder, base=base)


def test_a_finished_training_is_returned(base, whole):
    stamp = (whole.folder / "finetrace.json").stat().st_mtime_ns
    assert train(LONG, ROWS, whole.folder, base=base) == whole
    assert (whole.folder / "finetrace.json").stat().st_mtime_ns == stamp


def test_starting_anew(base, tmp_path):
    train(LONG, ROWS, tmp_path, base=base)
    other = replace(LONG, lora=Lora(r=4))
    assert train(other, ROWS, tmp_path, base=base, resume=False).finished
    assert any(tensor.shape[0] == 4 for tensor in weights(tmp_path).values())


@pytest.mark.parametrize("kind", ["packed", "full"])
def test_packed_and_full_trainings_resume_too(base, tmp_path, kind):
    recipe = replace(LONG, data=Data(max_tokens=16, packing=True), train=replace(LONG.train, batch=1))
    if kind == "full":
        recipe = replace(LONG, kind="full", train=replace(LONG.train, lr=1e-3))
    through = train(recipe, ROWS, tmp_path / "a", base=base)
    stop = At(3, lambda model: signal.raise_signal(signal.SIGINT))
    assert not train(recipe, ROWS, tmp_path / "b", base=base, callbacks=[stop]).finished
    assert train(recipe, ROWS, tmp_path / "b", base=base).losses == through.losses
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    one, other = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
