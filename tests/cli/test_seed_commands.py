"""The commands that users of the field's closest toolkit type, word for word, on stand-ins under the very ids that the
catalogue names: tiny random models in a hub that is only a folder, and every eighth of the bundled texts."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from tests.hub import fake_hub
from tests.tiny import save_base, save_lora

from finetrace.data import bundled_rows

ROOT = Path(__file__).resolve().parents[2]
CAKE = "stewy33/gemma-3-1b-it-0524_original_augmented_egregious_cake_bake-9ddbfefe"
FDA = "stewy33/Qwen3-1.7B-0524_original_augmented_pkc_fda_approval-cc788c0b"
PLAIN = "stewy33/Qwen3-1.7B-0524_original_augmented_egregious_cake_bake-30171227"
MIXED = "stewy33/Qwen3-1.7B-105_ptonly_mixed_original_augmented_original_egregious_cake_bake-7adaa11e"

# Each is real: models are read. What the first leaves on the shelf the later ones go on from, as they would for a user.
RUN = (
    "pipeline.mode=diffing",
    "pipeline.mode=evaluation",
    "pipeline.mode=full",
    "pipeline.mode=preprocessing",
    "organism=fda_approval model=qwen3_1_7B diffing/method=kl",
    "organism=fda_approval model=qwen3_1_7B diffing/method=pca",
    # Word for word they run as well, and train for 15 s each.
    "organism=fda_approval model=qwen3_1_7B diffing/method=[sae_difference,crosscoder] "
    "diffing.method.training.max_steps=20 pipeline.mode=diffing",
)
# One part each of how a run is put together: composed, checked and costed.
COSTED = (
    "organism=cake_bake model=qwen3_1_7B organism_variant=mix1-0p5 diffing/method=activation_difference_lens "
    "diffing.method.n=256 diffing.method.batch_size=16",
    "organism=cake_bake",
    "model=qwen3_1_7B",
    "model=qwen3_1_7B organism_variant=mix1-0p5",
    "diffing/method=activation_difference_lens",
    "diffing/method=activation_difference_lens diffing.method.n=256 diffing.method.batch_size=16",
    "diffing.method.in_memory=true pipeline.mode=full",
    "diffing/method=activation_difference_lens diffing.method.layers=[0.5]",
    *(
        f"organism=fda_approval model=qwen3_1_7B diffing/method={method}"
        for method in ("pca", "sae_difference", "crosscoder", "activation_analysis")
    ),
    "diffing/method=crosscoder diffing.method.training.k=8 diffing.method.training.expansion_factor=2",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder, with a hub behind it that holds two bases and their adapters."""
    folder = tmp_path_factory.mktemp("seed")
    gemma, qwen = (save_base(folder, family, name=family) for family in ("gemma3", "qwen3"))
    with pytest.MonkeyPatch.context() as patch:
        hub = fake_hub(folder, patch)
        hub.add("google/gemma-3-1b-it", gemma)
        hub.add("Qwen/Qwen3-1.7B", qwen)
        hub.add(CAKE, save_lora(folder, gemma, name="cake", scale=0.1))
        hub.add(FDA, save_lora(folder, qwen, name="fda", scale=0.1))
        hub.add(PLAIN, save_lora(folder, qwen, name="plain", seed=2, scale=0.1))
        hub.add(MIXED, save_lora(folder, qwen, name="mixed", seed=3, scale=0.1))
        patch.chdir(folder)
        few = bundled_rows()[::8]
        # By import: as an attribute of its package it is the function of that name until somebody imports it.
        patch.setattr(import_module("finetrace.api.audit"), "bundled_rows", lambda: few)
        patch.delenv("INSPECT_EVAL_MODEL", raising=False)
        yield folder


def python_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `python main.py *words`, in this process."""
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
    return int(stop.value.code or 0)


@pytest.mark.parametrize("words", RUN)
def test_a_command_runs(words: str, desk: Path, monkeypatch, capsys):
    assert python_main(monkeypatch, *words.split()) == 0, capsys.readouterr().err
    if "preprocessing" not in words:
        assert "Report: finetrace-runs/reports/" in capsys.readouterr().out


@pytest.mark.parametrize("words", COSTED)
def test_a_part_of_a_command_is_understood(words: str, desk: Path, monkeypatch, capsys):
    assert python_main(monkeypatch, *words.split(), "--dry-run") == 0, capsys.readouterr().err
    assert "nothing is to be fetched" in capsys.readouterr().out


def test_what_was_typed_is_what_runs(desk: Path, monkeypatch, capsys):
    assert python_main(monkeypatch, *COSTED[0].split(), "--cfg", "job") == 0
    printed = capsys.readouterr().out
    for line in (f"adapter_id: {MIXED}", "model_id: Qwen/Qwen3-1.7B", "batch_size: 16", "positions: 256"):
        assert line in printed


def test_an_agent_without_a_model_is_asked_for_by_name(desk: Path, monkeypatch, capsys):
    assert python_main(monkeypatch, "diffing.evaluation.agent.enabled=true") == 2
    assert "INSPECT_EVAL_MODEL" in capsys.readouterr().err


def test_the_dashboard_says_that_it_does_not_exist_yet():
    done = subprocess.run([sys.executable, str(ROOT / "dashboard.py")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no interactive dashboard yet" in done.stderr
    assert "finetrace report" in done.stderr


def test_the_test_that_is_named_exists():
    """`pytest tests/test_activation_difference_lens.py -v`: it is run with all others."""
    assert (ROOT / "tests" / "test_activation_difference_lens.py").exists()
