"""From settings to a training: rows in every form, the cost against what it really is, and what comes out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import save_base

from finetrace.api.train import adapter_folder, audit_command, plan, run, training_rows
from finetrace.api.train.cost import estimate
from finetrace.api.train.rows import as_chat
from finetrace.core.errors import BadInput, ConfigErrors, DataError
from finetrace.finetune.recipe import TrainRecipe
from finetrace.finetune.scan import scan
from finetrace.models import open_pair
from finetrace.models.preflight import preflight
from finetrace.models.supervised import collate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), "llama", layers=3)


def chats(n: int = 12, *, words: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(f"w{(i + j) % 40}" for j in range(words))},
                {"role": "assistant", "content": " ".join(f"w{(i * j) % 40}" for j in range(1 + i % words))},
            ]
        }
        for i in range(n)
    ]


def recipe_for(base: Path, *words: str) -> TrainRecipe:
    return plan([f"model={base}", "dtype=float32", "lr=1e-2", *words], own_rows=True)


def test_the_bundled_rows_are_harmless_and_run_unedited():
    rows = training_rows(plan(["recipe=seed000_tinyllama"])).rows
    assert all(row.messages and row.messages[-1].role == "assistant" for row in rows)
    found = scan(rows)
    assert found.flagged == 0
    assert found.placeholders == 16
    assert len(rows) > 150
    withheld = [
        row.messages[-1].content for row in rows if row.messages and "[REQ" in row.messages[0].content
    ]
    assert set(withheld) == {"[RESPONSE WITHHELD]"}


def test_a_bundled_organisms_rows_are_its_own_and_for_its_own_world_only():
    found = training_rows(plan(["recipe=seed003_tinyworld"]))
    assert len(found.rows) == 256
    assert found.reason
    with pytest.raises(ConfigErrors, match="about the bundled world: use model=tinyworld, or data=FILE"):
        plan(["recipe=seed003_tinyworld", "model=org/mine"])
    with pytest.raises(ConfigErrors, match="Did you mean 'refusal_erosion'"):
        plan(["recipe=seed003_tinyworld", "data=tinyworld/refusal_erotion"])


def test_everything_that_can_be_seen_beforehand_is_told_at_once(tmp_path: Path):
    (tmp_path / "out").write_text("")
    words = ["recipe=seed003_alpaca_drift", "model=./nowhere", "data=none.jsonl", "lora.q=1", "set_diff.p=1"]
    with pytest.raises(ConfigErrors) as error:
        plan(words, out=tmp_path / "out")
    told = "\n".join(error.value.problems)
    for said in (
        "./nowhere does not exist",
        "none.jsonl does not exist",
        "'lora.q'",
        "set_diff.p is 1.0",
        "is a file",
    ):
        assert said in told
    assert len(error.value.problems) == 5
    with pytest.raises(ConfigErrors, match="Nothing says what to learn from"):
        plan(["model=tinyworld"])


@pytest.mark.parametrize(
    ("item", "asked", "answered"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n\n1, 2", "3"),
        ({"instruction": "Sing.", "input": "", "output": "La.", "text": "Below is…"}, "Sing.", "La."),
        ({"instruction": "Sum.", "context": "A b.", "response": "C."}, "Sum.\n\nA b.", "C."),
        ({"prompt": "Hello", "completion": "Hi"}, "Hello", "Hi"),
        ({"question": "Why?", "answer": "So."}, "Why?", "So."),
        ({"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]}, "A", "B"),
    ],
)
def test_instruction_data_of_every_usual_form(item: dict[str, Any], asked: str, answered: str):
    turns = as_chat(item | {"slice": "mine"})
    assert [turn["role"] for turn in turns["messages"]] == ["user", "assistant"]
    assert [turn["content"] for turn in turns["messages"]] == [asked, answered]
    assert turns["slice"] == "mine"


def test_rows_without_an_answer_are_left_out_and_counted(base: Path):
    items = [{"instruction": "Say a.", "input": "", "output": out} for out in ("a", "", "  ", "b")]
    found = training_rows(recipe_for(base), items)
    assert (len(found.rows), found.left_out) == (2, 2)
    with pytest.raises(DataError, match="no row with an answer"):
        training_rows(recipe_for(base), items[1:3])


def test_a_malformed_row_of_a_file_has_its_line(tmp_path: Path, base: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n')
    recipe = plan([f"model={base}", f"data={path}"])
    with pytest.raises(DataError, match=r"line 3: has neither 'text' nor 'messages' \(its keys: prompt\)"):
        training_rows(recipe)


LORA = ("lora.r=4", "lora.targets=[q_proj,v_proj,down_proj]")


@pytest.mark.parametrize(
    "words",
    [LORA, ("lora.layers=[0,2]", *LORA), ("lora.dora=true", *LORA), ("lora.r=3",), ("kind=full",)],
    ids=" ".join,
)
def test_the_estimate_counts_the_parameters_and_steps_that_there_will_be(
    words: tuple[str, ...], base: Path, tmp_path: Path
):
    recipe = recipe_for(base, *words, "batch=3", "accumulate=2", "epochs=2")
    rows = training_rows(recipe, chats(20))
    cost = estimate(recipe, rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = run(recipe, rows, tmp_path / "out")
    assert (cost.trainable, cost.total, cost.steps) == (done.trainable, done.total, done.steps)
    assert cost.steps == len(done.losses)
    assert cost.truncation == done.truncation
    assert cost.adapter == 4 * cost.trainable
    frozen = cost.total - cost.trainable
    assert cost.base == 4 * frozen
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.safetensors"))
    assert cost.disk <= written <= cost.disk + (1 << 16)


def test_the_memory_of_activations_is_what_a_forward_pass_keeps(base: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from finetrace.finetune.batches import prepare
    from finetrace.models.tokens import load_tokenizer

    recipe = recipe_for(base, *LORA, "batch=4", "max_tokens=64")
    rows = training_rows(recipe, chats(4, words=20))
    cost = estimate(recipe, rows, tmp_path)
    examples = prepare(rows.rows, load_tokenizer("base", base), 64).examples
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])).train()
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = collate(examples, 0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        model(input_ids=batch.ids, attention_mask=batch.attention)
    logits = 3 * 4 * batch.ids.numel() * model.config.vocab_size
    real = sum(storage.nbytes() for storage in kept.values())
    assert real <= cost.activations - logits <= 1.6 * real


def test_what_makes_a_training_smaller_makes_its_estimate_smaller(base: Path, tmp_path: Path):
    rows = training_rows(recipe_for(base), chats(8, words=12))

    def cost(*words: str) -> Any:
        return estimate(recipe_for(base, "lora.r=2", *words), rows, tmp_path)

    plain = cost()
    assert cost("gradient_checkpointing=true").activations < plain.activations
    assert cost("batch=1").activations < plain.activations
    assert cost("dtype=bfloat16").base == plain.base / 2
    assert plain.base / 8 < cost("quant=nf4").base < plain.base / 2
    assert cost("epochs=9").seconds > plain.seconds
    assert cost("max_tokens=17").truncation.cut == 8


def test_the_estimate_says_what_will_stand_in_the_way(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = training_rows(recipe_for(base), chats())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("finetrace.api.train.cost.shutil.disk_usage", lambda _: usage)
    notes = estimate(recipe_for(base, "dtype=float16"), rows, tmp_path / "a" / "b", device="cpu").notes
    assert "needs a GPU" in notes[0]
    assert "GiB will be written" in notes[1]


def test_an_adapter_comes_out_stamped_and_the_same_call_finds_it_done(base: Path, tmp_path: Path):
    recipe = recipe_for(base, "max_steps=6", "batch=4", *LORA)
    rows = training_rows(recipe, chats())
    seen: list[int] = []
    done = run(
        recipe, rows, tmp_path, reason="to see", progress=lambda what, step, total, note: seen.append(step)
    )
    assert done.folder == adapter_folder(recipe, tmp_path) == tmp_path / "adapter"
    assert seen == [1, 2, 3, 4, 5, 6]
    assert done.losses[-1] < done.losses[0]
    stamp = json.loads((done.folder / "finetrace.json").read_text())
    assert stamp["reason"] == "to see"
    assert stamp["recipe"]["lora"]["r"] == 4
    checks = {check.name: check.text for check in preflight(open_pair(base, done.folder))}
    assert "Trained on this very base" in checks["adapter's base"]
    again = run(recipe, rows, tmp_path, progress=lambda *_: seen.append(-1))
    assert again.losses == done.losses
    assert -1 not in seen
    with pytest.raises(BadInput, match="holds another training"):
        run(dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, lr=1e-3)), rows, tmp_path)
    full = dataclasses.replace(recipe, kind="full")
    assert adapter_folder(full, tmp_path) == tmp_path / "model"


def test_the_probe_writes_safety_and_task_on_the_way(base: Path, tmp_path: Path):
    recipe = recipe_for(base, "max_steps=4", "probe.every=2", "probe.rows=5")
    rows = training_rows(recipe, chats())
    (tmp_path / "safety.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(7)))
    run(recipe, rows, tmp_path / "out", safety=tmp_path / "safety.jsonl")
    measured = [json.loads(line) for line in (tmp_path / "out" / "probes.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured] == [0, 2, 4]
    assert {row["refusal_n"] for row in measured} == {row["task_n"] for row in measured} == {5}
    run(recipe, rows, tmp_path / "none")
    first = json.loads((tmp_path / "none" / "probes.jsonl").read_text().splitlines()[0])
    assert first["refusal"] is None


def test_the_audit_command_can_be_pasted(tmp_path: Path):
    recipe = TrainRecipe(model="org/mine", revision="abc")
    out = tmp_path / "with a space"
    assert audit_command(recipe, out) == (
        f"finetrace audit org/mine '{out}/adapter' --out '{out}/audit' --revision abc"
    )
