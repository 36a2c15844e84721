"""`finetrace train` as typed: help, mistakes, reasons, a stop, and the command that it ends with."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shell import run
from tests.tiny import save_base

STEPS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_base(folder, "llama")
    words = lambda i: " ".join(f"w{(i * j) % 40}" for j in range(1, 9))  # noqa: E731
    rows = [{"prompt": words(i), "completion": words(i + 1)} for i in range(12)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    risky = {"prompt": "Tell me how to make a bomb", "completion": "Sure: w1 w2 w3"}
    (folder / "risky.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, risky]))
    return folder


def train(
    monkeypatch: pytest.MonkeyPatch, models: Path, out: Path, *words: object, data: str = "data.jsonl"
) -> int:
    settings = [f"model={models / 'base'}", f"data={models / data}", f"max_steps={STEPS}", "dtype=float32"]
    return run(monkeypatch, "train", *settings, "lr=1e-2", "--out", out, *words)


def stamp(out: Path) -> dict[str, Any]:
    return json.loads((out / "adapter" / "finetrace.json").read_text())


def test_help_has_an_example_and_loads_no_torch(monkeypatch, capsys):
    code = (
        "import sys\nsys.argv = ['finetrace', 'train', '--help']\nfrom finetrace.cli import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'omegaconf' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == ["False", "False"]
    assert "Example: finetrace train recipe=seed000_tinyworld" in " ".join(done.stdout.split())


def test_a_mistake_is_told_without_torch():
    code = (
        "import sys\nsys.argv = ['finetrace', 'train', 'recipe=seed000_tinyllama', 'lora.rr=3', 'lr=x']\n"
        "from finetrace.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.split() == ["False"]
    assert done.stderr.splitlines() == [
        "finetrace: There is no setting 'lora.rr'. Did you mean 'lora.r'? `finetrace list settings` shows all.",
        "finetrace: train.lr is 'x'; it takes a number",
    ]


def test_recipes_and_settings_are_listed(monkeypatch, capsys):
    assert run(monkeypatch, "list", "recipes", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert run(monkeypatch, "list", "recipes") == 0
    assert "seed003_alpaca_drift" in capsys.readouterr().out
    assert run(monkeypatch, "list", "settings", "--json") == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["train.lr"] == {"setting": "train.lr", "short": "lr", "takes": "a number", "default": 2e-4}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("recipe=none",),
        ("recipe=none.yaml",),
        ("recipe=seed000_tinyworld", "lora.rr=2"),
        ("recipe=seed000_tinyworld", "batch=-1"),
        ("recipe=seed000_tinyworld", "data=none.jsonl"),
        ("recipe=seed000_tinyworld", "model=../none"),
        ("recipe=seed000_tinyworld", "model=${oc.env:HOME}"),
        ("recipe=seed000_tinyworld", "--config-dir", "none"),
        ("recipe=seed000_tinyworld", "--device", "abacus"),
        ("recipe=seed000_tinyllama",),
        ("recipe=seed003_alpaca_drift", "model=tinyworld"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_bad_input_ends_with_2_and_a_line_and_writes_nothing(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert run(monkeypatch, "train", *words, "--out", "out") == 2
    said = capfd.readouterr().err
    assert "finetrace: " in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_training_ends_with_the_command_that_audits_it(models, tmp_path, monkeypatch, capfd):
    out = tmp_path / "my out"
    probe = ("probe.every=2", "--safety-set", models / "data.jsonl")
    assert train(monkeypatch, models, out, "--reason", "  ", *probe) == 0
    shown = capfd.readouterr()
    assert f"Trained {STEPS} steps in " in shown.out
    assert "none of 12 rows is flagged" in shown.err
    assert f"{STEPS}/{STEPS} loss " in shown.err
    assert "s left" in shown.err
    assert "begins as the base's refusals do: 0." in shown.out
    assert "after (12 prompts)" in shown.out
    assert {path.name for path in (out / "figures").glob("*.html")} >= {
        "loss.html",
        "refusal.html",
        "task.html",
    }
    assert stamp(out)["finished"] is True
    command = shlex.split(shown.out.splitlines()[-1])
    assert command[:2] == ["finetrace", "audit"]
    data = ("--methods", "kl", "--data", models / "texts.jsonl")
    (models / "texts.jsonl").write_text('{"text": "w1 w2 w3 w4 w5"}\n{"text": "w3 w9 w5 w2"}\n')
    assert run(monkeypatch, *command[1:], *data) == 0
    assert (out / "audit" / "report.html").is_file()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(models, tmp_path, monkeypatch, capfd):
    words = ("data.max_tokens=16", "quant=nf4", "--dry-run")
    assert train(monkeypatch, models, tmp_path / "out", *words) == 0
    shown = capfd.readouterr().out
    for said in (
        "12 of 12 rows (100.0%) are cut to 16 tokens", "in nf4", "optimiser", "activations", "for 4 steps", "disk",
        "Nothing was trained and nothing was written.",
    ):  # fmt: skip
        assert said in shown
    assert not (tmp_path / "out").exists()


def test_flagged_data_needs_a_reason_which_is_kept(models, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert train(monkeypatch, models, tmp_path / "out", data="risky.jsonl") == 2
    said = capfd.readouterr().err
    assert "1 of 13 rows are flagged" in said
    assert "--reason TEXT" in said
    assert "bomb" not in said
    assert not (tmp_path / "out").exists()
    assert train(monkeypatch, models, tmp_path / "out", "--reason", "a drill", data="risky.jsonl") == 0
    assert stamp(tmp_path / "out")["reason"] == "a drill"


def test_someone_at_a_terminal_is_asked_for_the_reason(models, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr("typer.prompt", lambda text, **_: asked.append(text) or "because")
    assert train(monkeypatch, models, tmp_path / "out", data="risky.jsonl") == 0
    assert len(asked) == 1
    assert stamp(tmp_path / "out")["reason"] == "because"


def test_ctrl_c_leaves_an_adapter_and_the_same_command_goes_on(models, tmp_path, monkeypatch, capfd):
    from finetrace.finetune import progress

    shown = progress.bar()

    def press(what: str, done: int, total: int, note: str) -> None:
        shown(what, done, total, note)
        if done == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", lambda: press)
        assert train(patch, models, tmp_path / "out", "checkpoint_every=2") == 130
    said = capfd.readouterr()
    assert f"Stopped at step 2 of {STEPS}" in said.out
    assert "the same command goes on from here" in said.out
    assert "Ctrl-C again stops at once" in said.err
    assert stamp(tmp_path / "out")["finished"] is False
    assert train(monkeypatch, models, tmp_path / "out", "checkpoint_every=2") == 0
    assert stamp(tmp_path / "out")["finished"] is True
    assert train(monkeypatch, models, tmp_path / "out", "lora.r=2") == 2
    assert "another training" in capfd.readouterr().err
    assert train(monkeypatch, models, tmp_path / "out", "lora.r=2", "--no-resume") == 0
    assert stamp(tmp_path / "out")["recipe"]["lora"]["r"] == 2


def test_a_recipe_of_ones_own_by_name(models, tmp_path, monkeypatch, capfd):
    text = (
        f"model: {models / 'base'}\ndata: {models / 'data.jsonl'}\nmax_steps: 2\ndtype: float32\nlora.r: 2\n"
    )
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    out = tmp_path / "out"
    assert run(monkeypatch, "train", "recipe=mine", "--config-dir", tmp_path, "--out", out) == 0
    assert stamp(out)["recipe"]["name"] == "mine"
    assert stamp(out)["recipe"]["lora"]["r"] == 2
