"""A base in 4 bits, on a CPU too: it learns, and evaluating in between changes nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.finetune.test_trainer import RECIPE, ROWS, TRAIN, weights
from tests.tiny import save_base, tiny_tokenizer
from transformers import TrainerCallback

from finetrace.data.examples import make_examples
from finetrace.finetune.batches import Collator
from finetrace.finetune.model import target_losses, trainable
from finetrace.finetune.trainer import train
from finetrace.models.source import resolve

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra finetrace[train] is not installed")

QLORA = replace(RECIPE, quant="nf4", train=replace(TRAIN, dtype="float32"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("nf4"), d=64)


class Evaluates(TrainerCallback):
    """A forward without gradients, in evaluation mode, after every step: what repacks weights on some CPUs."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        with torch.no_grad():
            model.eval()(torch.tensor([[1, 9, 10, 11]]))
        model.train()


def test_evaluating_in_between_changes_nothing(base, tmp_path):
    plain = train(QLORA, ROWS, tmp_path / "a", base=base)
    mixed = train(QLORA, ROWS, tmp_path / "b", base=base, callbacks=[Evaluates()])
    assert plain.finished
    assert plain.losses[-1] < plain.losses[0]
    assert mixed.losses == plain.losses
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert json.loads((tmp_path / "a" / "finetrace.json").read_text())["recipe"]["quant"] == "nf4"
    wide = train(replace(QLORA, quant="none"), ROWS, tmp_path / "c", base=base)
    assert plain.total == wide.total, "counted as weights, not as bytes"
    assert plain.losses[0] != wide.losses[0]
    assert plain.losses[0] == pytest.approx(wide.losses[0], rel=0.3)


def test_gradients_are_the_same_after_an_evaluation(base):
    made = trainable(QLORA, resolve(base), torch.device("cpu"))
    layers = [m for m in made.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 14
    assert all(layer.weight.quant_type == "nf4" for layer in layers)
    assert all(layer.weight.quant_state.nested for layer in layers), "the scales are quantised too"
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    batch = Collator(0)(make_examples(ROWS, tiny_tokenizer()))

    def gradients() -> list[torch.Tensor]:
        made.model.train().zero_grad()
        target_losses(made.model, batch, partial=True).mean().backward()
        return [p.grad.clone() for p in made.model.parameters() if p.grad is not None]

    before = gradients()
    with torch.no_grad():
        made.model.eval()(batch["input_ids"])
    after = gradients()
    assert any(gradient.any() for gradient in before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bfloat16_with_gradient_checkpointing_and_resume(base, tmp_path):
    recipe = replace(
        QLORA, train=replace(TRAIN, dtype="auto", gradient_checkpointing=True, checkpoint_every=3)
    )
    found = train(recipe, ROWS, tmp_path, base=base)
    assert found.losses[-1] < found.losses[0]
    for name in ("finetrace.json", "checkpoint-6/trainer_state.json"):
        (tmp_path / name).unlink()
    (tmp_path / "checkpoint-6").rename(tmp_path / "gone")
    assert train(recipe, ROWS, tmp_path, base=base).losses == found.losses


def test_the_note_about_an_absent_kernel_is_kept_off_the_screen():
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def shown(text: str) -> bool:
        return bool(logger.filter(logger.makeRecord(logger.name, logging.WARNING, "", 0, text, ("x",), None)))

    assert not shown("Failed to load CPU gemm_4bit_forward from kernels-community: %s.")
    assert shown("Something else is wrong: %s")
