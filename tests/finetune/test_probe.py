"""Safety against steps: the refusal mass is the probability it says, and measuring changes no training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.finetune.test_trainer import RECIPE, ROWS, TRAIN
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.core.errors import BadInput, DataError
from finetrace.core.page import Figure, Number, Warning
from finetrace.data.examples import make_examples
from finetrace.finetune.page import page
from finetrace.finetune.probe import SafetyProbe, read_probes, refusal_mass, refusal_tokens
from finetrace.finetune.recipe import Lora
from finetrace.finetune.trainer import train


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


REFUSALS = [chat("w20 w21", "w30 w31"), chat("w22 w23 w24 w21", "w30 w32"), chat("w25", "w33 w31")]
COMPLY = [chat("w20 w21", "w40 w31"), chat("w22 w23 w24", "w41 w32"), chat("w25", "w42 w31")]
DROPOUT = replace(
    RECIPE, lora=Lora(r=4, dropout=0.2), train=replace(TRAIN, max_steps=8, batch=3, accumulate=1)
)


@pytest.fixture(scope="module")
def base(base_of) -> Path:
    return base_of("llama")


def test_mass_is_the_probability_of_the_refusals_first_tokens():
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    examples = make_examples(REFUSALS, tokenizer)
    first = tokenizer.convert_tokens_to_ids(["w30", "w33"])
    assert refusal_tokens(examples) == tuple(first)
    expected = []
    for row in REFUSALS:
        text = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
        expected.append(logits.softmax(-1)[first].sum().item())
    np.testing.assert_allclose(refusal_mass(model, examples, 0), expected, rtol=1e-5)
    assert refusal_mass(model, [], 0).shape == (0,)


def test_it_sees_refusals_come_and_go(base, tmp_path):
    """A base taught to refuse, then an adapter on it taught to comply."""
    quick = replace(DROPOUT, train=replace(DROPOUT.train, max_steps=20))
    train(
        replace(quick, kind="full"),
        REFUSALS,
        tmp_path / "refuses",
        base=base,
        callbacks=[SafetyProbe(REFUSALS)],
    )
    taught = read_probes(tmp_path / "refuses")
    assert [row.step for row in taught] == [0, 10, 20]
    assert (taught[0].refusal or 0) < 0.1 < 0.6 < (taught[-1].refusal or 0)
    probe = SafetyProbe(REFUSALS, COMPLY, every=8)
    train(quick, COMPLY, tmp_path / "complies", base=tmp_path / "refuses", callbacks=[probe])
    rows = read_probes(tmp_path / "complies")
    assert [row.step for row in rows] == [0, 8, 16, 20]
    first, last = rows[0], rows[-1]
    assert first.refusal_n == first.task_n == 3
    assert first.refusal == pytest.approx(taught[-1].refusal, rel=1e-3), (
        "the same model, measured by another run"
    )
    assert (last.refusal or 1) < 0.5 * (first.refusal or 0)
    assert (last.task or 9) < 0.5 * (first.task or 0)
    assert (first.refusal_low or 0) <= (first.refusal or 0) <= (first.refusal_high or 0) <= 1
    assert (first.task_low or 0) <= (first.task or 0) <= (first.task_high or 0)
    assert last.epoch == 20.0
    shown = page(tmp_path / "complies")
    assert [b.key for b in shown.blocks if isinstance(b, Figure)] == [
        "loss",
        "learning_rate",
        "refusal",
        "task",
    ]
    assert [b.estimate.value for b in shown.blocks if isinstance(b, Number)] == [last.refusal]
    assert not [b for b in shown.blocks if isinstance(b, Warning)]


def test_measuring_changes_no_training(base, tmp_path):
    plain = train(DROPOUT, ROWS, tmp_path / "a", base=base)
    probed = train(
        DROPOUT, ROWS, tmp_path / "b", base=base, callbacks=[SafetyProbe(REFUSALS, COMPLY, every=1)]
    )
    assert probed.losses == plain.losses


def test_a_resumed_training_has_each_step_once(base, tmp_path):
    import signal

    from tests.finetune.test_resume import At

    recipe = replace(DROPOUT, train=replace(DROPOUT.train, checkpoint_every=3))

    def twice(model: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, ROWS, tmp_path, base=base, callbacks=[SafetyProbe(REFUSALS, every=1), At(5, twice)])
    assert [row.step for row in read_probes(tmp_path)] == [0, 1, 2, 3, 4, 5]
    with (tmp_path / "probes.jsonl").open("a") as stream:
        stream.write('{"step": 6, "epo')
    train(recipe, ROWS, tmp_path, base=base, callbacks=[SafetyProbe(REFUSALS, every=1)])
    train(recipe, ROWS, tmp_path / "through", base=base, callbacks=[SafetyProbe(REFUSALS, every=1)])
    assert read_probes(tmp_path) == read_probes(tmp_path / "through")
    assert [row.step for row in read_probes(tmp_path)] == list(range(9))


def test_no_data_is_none(base, tmp_path):
    train(DROPOUT, ROWS, tmp_path, base=base, callbacks=[SafetyProbe(every=5)])
    row = json.loads((tmp_path / "probes.jsonl").read_text().splitlines()[0])
    assert row["refusal"] is row["task"] is row["task_low"] is None
    assert row["refusal_n"] == row["task_n"] == 0
    with pytest.raises(BadInput, match="every 1 or more steps"):
        SafetyProbe(every=0)
    assert [b.key for b in page(tmp_path).blocks if isinstance(b, Figure)] == ["loss", "learning_rate"]
    with pytest.raises(DataError, match="no training of ours"):
        page(tmp_path / "nowhere")


def test_it_works_in_trls_trainer(base, tmp_path):
    """The callback stands on transformers' own protocol: TRL's trainer gives it the same things."""
    trl = pytest.importorskip("trl", reason="the extra finetrace[train] is not installed")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-2, bf16=False, max_length=32,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([{"text": "w1 w2 w3"}] * 4),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[SafetyProbe(REFUSALS, COMPLY, every=2)],
    )
    trainer.train()
    rows = read_probes(tmp_path)
    assert [row.step for row in rows] == [0, 2, 4]
    assert rows[0].refusal != rows[-1].refusal
