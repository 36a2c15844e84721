"""`train`: its losses are a plain loop's, its result is a usable stamped adapter, and mistakes are said."""

from __future__ import annotations

import json
import random
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.core.errors import BadInput, ConfigErrors, DataError, FinetraceError, ModelError
from finetrace.data.examples import make_examples
from finetrace.finetune.batches import Order
from finetrace.finetune.recipe import Data, Lora, Train, TrainRecipe
from finetrace.finetune.trainer import train
from finetrace.models import open_pair
from finetrace.models.supervised import collate

ROWS: list[dict[str, Any]] = [
    {"text": "w1 w2 w3 w4 w5"},
    {"messages": [{"role": "user", "content": "w6"}, {"role": "assistant", "content": "w7 w8"}]},
    {"messages": [{"role": "user", "content": "w6 w9 w9 w9"}, {"role": "assistant", "content": "w3"}]},
    {"text": "w9 w2"},
    {"text": "w11 w12 w13 w14 w15 w16 w17"},
]
TRAIN = Train(lr=1e-2, batch=2, accumulate=2, max_steps=6, warmup=2, dtype="float32", weight_decay=0.01)
RECIPE = TrainRecipe(name="tiny", model="tiny/base", lora=Lora(r=4), train=TRAIN, data=Data(max_tokens=32))


@pytest.fixture(scope="module")
def base(base_of) -> Path:
    return base_of("llama")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def plain_loop(recipe: TrainRecipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training written out: mean over the targets of all rows of a step, clip, AdamW, warm-up and decay."""
    examples = make_examples(ROWS, tiny_tokenizer())
    model = tiny_model("llama")
    torch.manual_seed(recipe.train.seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned: Any = get_peft_model(model, config).train()
    masters = [p for p in tuned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(masters, lr=recipe.train.lr, weight_decay=recipe.train.weight_decay)
    order, losses = Order(len(examples), recipe.train.seed), []
    # An epoch is batches of 2, 2 and 1 rows; two batches make a step, and the epoch's last batch one by itself.
    rows: list[list[int]] = []
    for epoch in range(3):
        order.set_epoch(epoch)
        drawn = list(order)
        rows += [drawn[:4], drawn[4:]]
    for step, chosen in enumerate(rows):
        batch = collate([examples[i] for i in chosen], 0)
        for group in optimiser.param_groups:
            group["lr"] = recipe.train.lr * (step / 2 if step < 2 else (6 - step) / 4)
        logits = tuned(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1]
        kept = batch.labels[:, 1:] >= 0
        loss = torch.nn.functional.cross_entropy(logits[kept], batch.labels[:, 1:][kept])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(masters, recipe.train.clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    named = {n.replace(".default", ""): p.detach() for n, p in tuned.named_parameters() if p.requires_grad}
    return losses, named


def test_it_is_a_plain_loop_in_float32(base, tmp_path):
    losses, masters = plain_loop(RECIPE)
    found = train(RECIPE, ROWS, tmp_path, base=base)
    assert found.finished
    assert found.losses == pytest.approx(losses, rel=1e-5)
    saved = weights(tmp_path)
    assert saved.keys() == masters.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, masters[name], rtol=1e-3, atol=2e-5)


def test_the_result_is_a_stamped_adapter_that_loads(base, tmp_path):
    found = train(RECIPE, ROWS, tmp_path, base=base)
    assert found.losses[-1] < found.losses[0]
    stamp = json.loads((tmp_path / "finetrace.json").read_text())
    assert stamp["finished"]
    assert not stamp["audited"]
    assert stamp["step"] == stamp["steps"] == 6
    assert stamp["recipe"]["lora"]["r"] == 4
    assert len(stamp["base"]["sha256"]) == len(stamp["data"]["sha256"]) == 64
    card = (tmp_path / "README.md").read_text()
    assert "Not audited yet" in card
    assert "finetrace audit tiny/base THIS" in card
    curve = json.loads((tmp_path / "losses.json").read_text())
    assert tuple(curve["loss"]) == found.losses
    assert curve["share"] == pytest.approx(found.trainable / found.total)
    assert "tiny/base" in (tmp_path / "adapter_config.json").read_text()
    pair = open_pair(base, tmp_path)
    ids = torch.tensor([[1, 9, 10, 11]])
    loaded: Any = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, pair.tuned(ids).logits, atol=1e-5)


def test_the_callers_generators_stay(base, tmp_path):
    def states() -> list[Any]:
        numpy: Any = np.random.get_state()
        return [torch.random.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2:]]

    before = states()
    train(replace(RECIPE, lora=Lora(r=2, dropout=0.1)), ROWS, tmp_path, base=base)
    assert states() == before


def test_the_seed_decides(base, tmp_path):
    recipe = replace(RECIPE, lora=Lora(r=2, dropout=0.2))
    first, again = (train(recipe, ROWS, tmp_path / name, base=base) for name in "ab")
    other = train(replace(recipe, train=replace(TRAIN, seed=1)), ROWS, tmp_path / "c", base=base)
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(t, weights(tmp_path / "b")[n]) for n, t in weights(tmp_path / "a").items())


def test_adapters_are_float32_on_a_bfloat16_base(base, tmp_path):
    found = train(replace(RECIPE, train=replace(TRAIN, dtype="auto")), ROWS, tmp_path, base=base)
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    exact = train(RECIPE, ROWS, tmp_path / "wide", base=base)
    assert found.losses[0] == pytest.approx(exact.losses[0], rel=0.02)
    assert found.losses[0] != exact.losses[0]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedules(base, tmp_path, schedule):
    recipe = replace(RECIPE, train=replace(TRAIN, schedule=schedule, warmup=0.34))
    train(recipe, ROWS, tmp_path, base=base)
    rates = json.loads((tmp_path / "losses.json").read_text())["learning_rate"]
    assert rates[3] == pytest.approx(1e-2)
    assert rates[1] < rates[2] < rates[3]
    assert (rates[-1] == pytest.approx(1e-2)) == (schedule == "constant")


def test_gradient_checkpointing_changes_nothing(base, tmp_path):
    plain = train(RECIPE, ROWS, tmp_path / "a", base=base)
    spare = replace(RECIPE, train=replace(TRAIN, gradient_checkpointing=True))
    assert train(spare, ROWS, tmp_path / "b", base=base).losses == pytest.approx(plain.losses, rel=1e-6)


def test_layers_rslora_and_dora(base, tmp_path):
    lora = Lora(r=2, targets=("q_proj", "up_proj"), layers=(1,), rslora=True, dora=True)
    train(replace(RECIPE, lora=lora), ROWS, tmp_path, base=base)
    names = weights(tmp_path)
    assert all(".layers.1." in name for name in names)
    assert any("lora_magnitude" in name for name in names)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["use_rslora"]
    assert config["use_dora"]


def test_all_weights_can_be_trained(base, tmp_path):
    recipe = replace(RECIPE, kind="full", train=replace(TRAIN, dtype="auto", lr=1e-3))
    found = train(recipe, ROWS, tmp_path, base=base)
    assert found.trainable == found.total == sum(p.numel() for p in tiny_model("llama").parameters())
    pair = open_pair(base, tmp_path)
    with pair.tuned.open() as tuned, torch.no_grad():
        assert {p.dtype for p in tuned.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] == json.loads(
        (base / "config.json").read_text()
    ).get("use_cache", True)


def test_wrong_input_is_said(base, tmp_path):
    with pytest.raises(ConfigErrors, match=r"lora\.r is 0.*train\.lr") as caught:
        train(replace(RECIPE, lora=Lora(r=0), train=replace(TRAIN, lr=0.0)), ROWS, tmp_path, base=base)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigErrors, match="trackers names 'nowhere'"):
        train(replace(RECIPE, trackers=("nowhere",)), ROWS, tmp_path, base=base)
    with pytest.raises(BadInput, match=r"wq_proj.*q_proj"):
        train(replace(RECIPE, lora=Lora(targets=("wq_proj",))), ROWS, tmp_path, base=base)
    with pytest.raises(BadInput, match="layers 0 to 1"):
        train(replace(RECIPE, lora=Lora(targets=("q_proj",), layers=(5,))), ROWS, tmp_path, base=base)
    with pytest.raises(BadInput, match="float16, whose loss scaling needs a GPU"):
        train(replace(RECIPE, train=replace(TRAIN, dtype="float16")), ROWS, tmp_path, base=base, device="cpu")
    with pytest.raises(DataError, match="no rows"):
        train(RECIPE, [], tmp_path, base=base)
    with pytest.raises(ModelError, match="no folder"):
        train(RECIPE, ROWS, tmp_path, base=tmp_path / "nowhere")


def test_what_cannot_end_well_does_not_begin(base, tmp_path, monkeypatch):
    long = replace(RECIPE, data=Data(max_tokens=500))
    with pytest.raises(BadInput, match=r"up to 202 tokens and this base reads 128: use data\.max_tokens=128"):
        train(long, [{"text": "w1 " * 200}], tmp_path, base=base)
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(FinetraceError, match=r"0\.00 GiB free, and the result and its checkpoints need"):
        train(RECIPE, ROWS, tmp_path, base=base)


def test_progress_tells_the_loss(base, tmp_path):
    told: list[tuple[str, int, int, str]] = []
    found = train(RECIPE, ROWS, tmp_path, base=base, progress=lambda *line: told.append(line))
    assert [(what, done, total) for what, done, total, _ in told] == [("training", n, 6) for n in range(1, 7)]
    assert told[-1][3].startswith(f"loss {found.losses[-1]:.3f}")
