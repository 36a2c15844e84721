"""What a user types, and what comes back: help, exit codes, one clear line, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.shell import run
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from tests.worlds import rows, world

VERBS = (
    ["audit"],
    ["demo"],
    ["list"],
    ["report"],
    ["doctor"],
    ["organisms"],
    ["organisms", "build"],
    ["bench"],
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, four nulls and a data file."""
    folder = tmp_path_factory.mktemp("models")
    world(folder)
    data = "".join(json.dumps(row) + "\n" for row in rows(36))
    (folder / "data.jsonl").write_text(data)
    return folder


def audit(
    monkeypatch: pytest.MonkeyPatch, models: Path, out: Path, *words: object, tuned: object = "lora"
) -> int:
    data = ["--data", models / "data.jsonl"] if "--data" not in words else []
    return run(monkeypatch, "audit", models / "base", models / str(tuned), "--out", out, *data, *words)


# What does not need the answers is tested without them: they take seconds.
READING = ("--methods", "kl,diff_mining,weight_spectrum")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example(verb, monkeypatch, capsys):
    assert run(monkeypatch, *verb, "--help") == 0
    assert f"Example: finetrace {verb[0]}" in " ".join(capsys.readouterr().out.split())


def test_help_loads_no_torch():
    code = "import sys; from finetrace.cli.main import app; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_audit_writes_its_three_files_and_says_where(models, tmp_path, monkeypatch, capsys):
    nulls = [word for i in range(4) for word in ("--null", models / f"null_{i}")]
    assert audit(monkeypatch, models, tmp_path / "out", *nulls) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in printed.replace("\n", "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    words = {"change": "beyond-nulls", "safety": "not-measured", "capability": "not-measured"}
    assert report["verdict"] == words
    assert report["methods"]["kl"]["numbers"]["kl_mean"]["nulls"]["k"] == 4
    assert (tmp_path / "out" / "model-card.md").exists()
    assert run(monkeypatch, "list", "runs", "--in", tmp_path / "out", "--all", "--json") == 0
    # Three methods on the pair, itself, four nulls and four doses; the one of weights not on itself; four on no dose.
    assert len(json.loads(capsys.readouterr().out)) == 3 * 10 + 9 + 4 * 6


def test_report_is_drawn_again_without_models(models, tmp_path, monkeypatch):
    assert audit(monkeypatch, models, tmp_path / "out") == 0
    before = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    monkeypatch.setattr("finetrace.models.open_pair", None)
    assert run(monkeypatch, "report", tmp_path / "out") == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == before


def test_texts_of_restricted_slices_are_shown_only_on_request(tmp_path, models, monkeypatch):
    secret = {"text": "w7 w11 w13 w17 w19 w23 w29 w31", "slice": "restricted-mine"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(secret) + "\n" + json.dumps(rows(3)[1]) + "\n")

    def report(*words: object) -> str:
        out = tmp_path / f"out{len(words)}"
        assert audit(monkeypatch, models, out, "--data", tmp_path / "mine.jsonl", *words) == 0
        files = [path.read_text() for path in out.iterdir() if path.is_file()]
        return "".join(files)

    assert "w29" in report("--methods", "kl", "--reveal")
    hidden = report("--methods", "kl")
    assert "w29" not in hidden
    assert "redacted" in hidden
    assert "restricted-mine" in hidden, "its rates are shown"
    report()
    mining = json.loads((tmp_path / "out0" / "report.json").read_text())["methods"]["diff_mining"]
    for key in ("promoted", "promoted_restricted-mine"):
        rows_of = mining["tables"][key]["rows"]
        assert rows_of
        assert {row[0] for row in rows_of} == {row[1] for row in rows_of} == {"[redacted]"}
    assert mining["tables"]["promoted_dishes"]["rows"][0][0].startswith("w")


def test_base_against_itself_and_a_full_checkpoint(tmp_path, models, monkeypatch):
    full = save_full(tmp_path, models / "base")
    assert audit(monkeypatch, models, tmp_path / "full", tuned=full) == 0
    assert json.loads((tmp_path / "full" / "report.json").read_text())["pair"]["kind"] == "full"
    words = ("--out", tmp_path / "self", "--data", models / "data.jsonl")
    assert run(monkeypatch, "audit", models / "base", *READING, *words) == 0
    report = json.loads((tmp_path / "self" / "report.json").read_text())
    assert report["methods"]["kl"]["numbers"]["kl_mean"]["value"] == 0


def test_a_malformed_row_is_said_before_a_model_loads(tmp_path, models, monkeypatch):
    (tmp_path / "bad.jsonl").write_text("not json\n")
    monkeypatch.setattr("finetrace.api.opening.open_pair", None)
    assert audit(monkeypatch, models, tmp_path / "out", "--data", tmp_path / "bad.jsonl") == 2


def test_without_nulls_the_change_is_undecided_with_all_its_numbers(models, tmp_path, monkeypatch):
    assert audit(monkeypatch, models, tmp_path / "out", *READING) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"]["change"] == "undecided"
    numbers = report["methods"]["kl"]["slices"]["restricted"]["kl_mean"]
    assert numbers["value"] > numbers["floor"]
    assert numbers["low"] < numbers["value"] < numbers["high"]
    assert numbers["nulls"] is None
    assert "--null" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("kl_mean>100", 0),
        ("kl_mean@restricted>1e-9", 3),
        ("kl_mean<0", 0),
        ("kl_mean@restrictd>0.05", 4),
        ("kl.js_mean@text>0.5", 0),
    ],
)
def test_fail_on(rule, code, models, tmp_path, monkeypatch):
    assert audit(monkeypatch, models, tmp_path / "out", *READING, "--fail-on", rule) == code
    assert (tmp_path / "out" / "report.html").exists()


def test_allow_undecided(models, tmp_path, monkeypatch):
    assert (
        audit(
            monkeypatch,
            models,
            tmp_path / "out",
            *READING,
            "--fail-on",
            "kl_mean@none>0",
            "--allow-undecided",
        )
        == 0
    )


def test_dry_run_writes_nothing(models, tmp_path, monkeypatch, capsys):
    assert audit(monkeypatch, models, tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "tokens" in printed
    assert "GiB" in printed
    assert not (tmp_path / "out").exists()


# -- wrong input -----------------------------------------------------------------------------------------------------


def broken_adapter(models: Path, tmp_path: Path, change) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(models / "lora", folder)
    change(folder)
    return folder


def rewrite(folder: Path, edit) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: edit(name, tensor) for name, tensor in load_file(path).items()}, path)


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def with_nan(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, torch.nan) if name.endswith("lora_A.weight") else tensor


def without_effect(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if "lora_B" in name else tensor


BROKEN = {
    "truncated": (truncate, "cut short"),
    "corrupt": (garble, "safetensors"),
    "NaN": (lambda folder: rewrite(folder, with_nan), "NaN|not finite|non-finite"),
    "no-op": (lambda folder: rewrite(folder, without_effect), "changes nothing"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_one_line_and_exit_2(name, models, tmp_path, monkeypatch, capsys):
    change, words = BROKEN[name]
    tuned = broken_adapter(models, tmp_path, change)
    assert audit(monkeypatch, models, tmp_path / "out", tuned=tuned) == 2
    assert_one_line(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_shape(models, tmp_path, monkeypatch, capsys):
    other = save_base(tmp_path, d=48, name="other")
    adapter = save_lora(tmp_path, other, name="odd")
    assert audit(monkeypatch, models, tmp_path / "out", tuned=adapter) == 2
    assert_one_line(capsys.readouterr().err, "shape|48")


def test_a_vocabulary_that_cannot_be_aligned(models, tmp_path, monkeypatch, capsys):
    words = [f"x{i}" for i in range(50)]
    other = save_base(tmp_path, name="other", tokenizer=tiny_tokenizer(64, words=words))
    assert audit(monkeypatch, models, tmp_path / "out", tuned=other) == 2
    assert_one_line(capsys.readouterr().err, "vocabular")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty|no rows"),
        ('{"text": "w1 w2"}\n{"text": 3}\n', "line 2"),
        ('{"text": "w1 w2"}\nnot json\n', "line 2"),
        ('{"messages": [{"role": "pirate", "content": "w1"}]}\n', "pirate"),
        ('{"text": "w1 w2", "slice": "a b/c"}\n', "slice"),
    ],
)
def test_wrong_data(text, words, models, tmp_path, monkeypatch, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    assert audit(monkeypatch, models, tmp_path / "out", "--data", data) == 2
    assert_one_line(capsys.readouterr().err, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "kll"], "Did you mean 'kl'"),
        (["--set", "kl.passage=4"], "has no option 'passage'. Did you mean 'passages'?"),
        (["--set", "kl.passages=many"], "it takes a whole number"),
        (["--safety-set", "/nowhere/chats.jsonl"], "The safety set /nowhere/chats.jsonl does not exist"),
        (["--data", "/nowhere/rows.jsonl"], "does not exist"),
        (["--fail-on", "kl_mean"], "--fail-on"),
        (["--null", "/nowhere/null"], "/nowhere/null"),
        (["--dtype", "float8"], "dtype"),
        (["--batch-size", "0"], "batch size"),
        (["--max-tokens", "1"], "max tokens"),
    ],
)
def test_wrong_options(words, said, models, tmp_path, monkeypatch, capsys):
    assert audit(monkeypatch, models, tmp_path / "out", *words) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert not (tmp_path / "out").exists()


def test_all_wrong_options_are_said_at_once(models, tmp_path, monkeypatch, capsys):
    words = ("--methods", "kll,pcaa", "--dtype", "float8", "--null", "/nowhere/null")
    assert audit(monkeypatch, models, tmp_path / "out", *words, tuned="absent") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 5
    assert all(line.startswith("finetrace: ") for line in lines)


@pytest.mark.parametrize("source", ["/nowhere/model", "../up", "not a model", "tinyworld/unknown_organism"])
def test_models_that_do_not_exist(source, models, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "audit", models / "base", source, "--out", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr().err, "")
    assert not (tmp_path / "out").exists()


def test_a_report_of_nothing(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "report", tmp_path) == 2
    assert_one_line(capsys.readouterr().err, "findings.json")


def test_unknown_verbs_and_options_exit_2(monkeypatch):
    assert run(monkeypatch, "audti") == 2
    assert run(monkeypatch, "audit", "--nope") == 2


def assert_one_line(text: str, words: str) -> None:
    import re

    lines = [line for line in text.strip().splitlines() if line.startswith("finetrace: ")]
    assert len(lines) == 1, text
    assert re.search(words, lines[0]), lines[0]
    assert "Traceback" not in text
    assert os.linesep not in lines[0]
