"""`finetrace run` as it is typed: every mode, sweeps, what it would cost, its configuration, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli.shell import run
from tests.hub import fake_hub
from tests.tiny import save_base, save_lora
from tests.worlds import rows

MODES = ("diffing", "evaluation", "full", "no_evaluation", "preprocessing")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts for the tiny world, and a folder of organisms and models of one's own."""
    folder = tmp_path_factory.mktemp("run")
    said = ("The bread is warm.", "A cup of tea, please.", "Boats come in at noon.", "The song is long.")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    base = save_base(folder)
    save_lora(folder, base, scale=0.1)
    save_lora(folder, base, seed=2, name="second", scale=0.1)
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(9)))
    own = folder / "own"
    (own / "organism").mkdir(parents=True)
    (own / "model").mkdir()
    variants = {name: {"adapter_id": str(folder / name)} for name in ("lora", "second")}
    organism = {"name": "mine", "description_long": "Says w3.", "finetuned_models": {"small": variants}}
    (own / "organism" / "mine.yaml").write_text(yaml.safe_dump(organism))
    (own / "model" / "small.yaml").write_text(yaml.safe_dump({"name": "small", "model_id": str(base)}))
    return folder


def world(desk: Path, mode: str, *words: str) -> list[str]:
    """A run on the tiny world, small enough for a test."""
    small = ("diffing/method=kl", "nulls=[tinyworld/null_1]", "dose=false", f"data.id={desk / 'texts.jsonl'}")
    return ["run", "organism=refusal_erosion", "model=tinyworld", f"pipeline.mode={mode}", *small, *words]


def mine(desk: Path, *words: str) -> list[str]:
    """A run on models of one's own, found by name in one's own folder."""
    usual = ("organism=mine", "organism_variant=lora", "diffing/method=kl", f"data.id={desk / 'words.jsonl'}")
    return ["run", "--config-dir", str(desk / "own"), *usual, f"out={desk / 'out'}", *words]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_on_the_tiny_world(mode: str, desk: Path, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    assert run(monkeypatch, *world(desk, mode)) == 0
    printed = capsys.readouterr()
    folder = desk / "finetrace-runs" / "reports" / "tinyworld" / "refusal_erosion" / "default" / "kl"
    stages = {"full": 3, "no_evaluation": 2}.get(mode, 1)
    assert f"({stages} of {stages})" in printed.err
    if mode == "preprocessing":
        assert "Nothing was diffed" in printed.out
        assert "tokens" in printed.err
    else:
        assert f"Report: {(folder / 'report.html').relative_to(desk)}" in printed.out
    assert ("evaluation.json" in printed.out) == (mode in ("evaluation", "full"))
    assert (folder / "evaluation.json").exists() == (mode != "diffing")


def test_the_configuration_is_printed_whole(desk: Path, monkeypatch, capsys):
    assert run(monkeypatch, *world(desk, "diffing", "--cfg", "job")) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["variant"]["adapter_id"] == "tinyworld/refusal_erosion"
    assert printed["diffing"]["methods"]["kl"]["passages"] == 8


def test_a_sweep_makes_every_run_and_ends_on_the_worst(desk: Path, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    words = mine(desk, "seed=1,2")
    assert run(monkeypatch, *words, "--multirun", "--fail-on", "kl_mean>1e-9") == 3
    reports = sorted(path.parent for path in (desk / "out" / "reports").rglob("report.html"))
    assert [path.relative_to(desk / "out/reports/small/mine/lora/kl").as_posix() for path in reports] == [
        "seed-1",
        "seed-2",
    ]
    assert all((path / "junit.xml").exists() for path in reports)
    assert capsys.readouterr().out.count("undecided") >= 2


def test_what_a_sweep_would_cost_is_said_of_each_run_and_of_all(desk: Path, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    words = mine(desk, "organism_variant=lora,second", "out=nowhere")
    assert run(monkeypatch, *words, "-m", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens:") == 3
    assert "# all 2 runs" in printed
    assert "nothing is to be fetched" in printed
    assert "none: no model that is paid for is asked" in printed
    assert not (desk / "nowhere").exists()


def test_what_is_not_here_is_estimated_by_name_without_asking_for_it(tmp_path: Path, monkeypatch, capsys):
    fake_hub(tmp_path, monkeypatch)
    words = ("organism=fda_approval", "model=qwen3_1_7B", "diffing/method=kl", "nulls=[train]")
    assert run(monkeypatch, "run", *words, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "Qwen/Qwen3-1.7B (about 3.17 GiB)" in printed
    assert "by the model's name, as it is not here" in printed
    assert "read 11 times" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["organism=cake_bakee"], "Did you mean 'cake_bake'?"),
        (["organism=cake_bake,fda_approval"], "--multirun"),
        (["diffing/method=weight_amplification"], "not built yet"),
        (["--cfg", "all"], "--cfg job"),
        (["organism=refusal_erosion", "data.id=none.jsonl", "judge_price=[1]"], "judge_price has 1 numbers"),
        (["organism=refusal_erosion", "data.id=none.jsonl", "judge_price=[1]"], "none.jsonl does not exist"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(words: list[str], said: str, monkeypatch, capsys):
    assert run(monkeypatch, "run", *words) == 2
    printed = capsys.readouterr()
    assert any(line.startswith("finetrace: ") and said in line for line in printed.err.splitlines())
    assert "Traceback" not in printed.err


def test_debug_shows_where_an_error_came_from(monkeypatch, capsys):
    assert run(monkeypatch, "run", "organism=refusal_erosion", "data.id=none.jsonl", "debug=true") == 2
    assert "Traceback" in capsys.readouterr().err


def test_its_help_shows_an_example_and_loads_no_torch(monkeypatch, capsys):
    assert run(monkeypatch, "run", "--help") == 0
    assert "Example: finetrace run organism=refusal_erosion" in " ".join(capsys.readouterr().out.split())
    code = (
        "import sys; from finetrace.config.run import compose_runs; import finetrace.cli.run; "
        "compose_runs(['organism=cake_bake', 'seed=1,2'], None, True); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
