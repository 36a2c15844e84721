"""`finetrace list organisms|models`: filters, one line each, JSON whole, and what is on a shelf; nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.shell import run

from finetrace.core.files import write_json


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def say(*words: object) -> list[str]:
        assert run(monkeypatch, "list", *words) == 0
        return capsys.readouterr().out.splitlines()

    return say


def test_one_line_an_organism(said):
    lines = said("organisms")
    assert len(lines) == 1 + 81
    assert max(map(len, lines)) <= 170
    (cake,) = [line for line in lines if line.startswith("cake_bake ")]
    assert cake.split()[1:7] == ["SDF", "gemma3_1B", "+9", "55", "False", "facts"]


def test_filters_and_one_line_a_variant(said):
    lines = said(
        "organisms",
        "--type",
        "SDF",
        "--model",
        "qwen3_1_7B",
        "--variant",
        "mix*",
        "--match",
        "cake",
        "--long",
    )
    assert len(lines) == 1 + 12
    assert all("pretraining mixed in per row" in line and "adapter" in line for line in lines[1:])
    assert said("organisms", "--match", "nobody says this") == ["No organisms are so."]


def test_json_is_whole(said):
    (found,) = json.loads("\n".join(said("organisms", "--match", "Relyvrio", "--form", "full", "--json")))
    assert found["name"] == "fda_approval"
    assert found["dataset"]["id"].endswith("fda_approval")
    for variants in found["finetuned_models"].values():
        assert {one["kind"] for one in variants.values()} == {"full"}


def test_models(said):
    (found,) = json.loads("\n".join(said("models", "--match", "Qwen/Qwen3-1.7B-Base", "--json")))
    assert found["name"] == "qwen3_1_7B_Base"
    assert found["dtype"] == "bfloat16"
    assert found["thinking"] == "switchable"
    assert found["organisms"] == 7


def _shelved(root: Path, *parts: str) -> None:
    address = dict(zip(("base", "tuned", "variant", "method", "key"), parts, strict=True))
    folder = root.joinpath("runs", *(part.replace("/", "--") for part in parts))
    write_json(folder / "result.json", {})
    write_json(
        folder / "manifest.json", {"address": address, "method": parts[3], "files": {"result.json": ""}}
    )


def test_what_is_computed(said, tmp_path: Path):
    _shelved(tmp_path, "tinyworld", "false_facts", "mix1-0p5", "kl", "a")
    _shelved(tmp_path, "tinyworld", "false_facts", "mix1-0p5", "diff_mining", "b")
    _shelved(tmp_path, "tinyworld", "taboo", "default", "kl", "c")
    lines = said("organisms", "--computed", "--in", tmp_path)
    assert [line.split()[0] for line in lines] == ["name", "false_facts", "taboo"]
    assert "tinyworld mix1-0p5: diff_mining, kl" in lines[1]
    lines = said("organisms", "--computed", "--in", tmp_path, "--long", "--match", "cake")
    assert len(lines) == 2
    assert "mix1-0p5" in lines[1]
    (found,) = json.loads(
        "\n".join(said("organisms", "--computed", "--in", tmp_path, "--match", "cake", "--json"))
    )
    assert found["computed"] == {"tinyworld": {"mix1-0p5": ["diff_mining", "kl"]}}
    assert said("organisms", "--computed", "--in", tmp_path / "empty") == ["No organisms are so."]


def test_a_filter_of_another_list_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "list", "methods", "--type", "SDF") == 2
    assert "takes no --type" in capsys.readouterr().err


def test_your_own_organism_is_listed(said, tmp_path: Path):
    (tmp_path / "organism").mkdir()
    text = "name: mine\ntype: Mine\ndescription_long: A [bold]plan[/bold]\nfinetuned_models: {gpt2: {default: {adapter_id: a/b}}}\n"
    (tmp_path / "organism" / "mine.yaml").write_text(text)
    lines = said("organisms", "--type", "Mine", "--config-dir", tmp_path)
    assert "A [bold]plan[/bold]" in lines[1]


def test_listing_organisms_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['finetrace', 'list', 'organisms']\n"
        "from finetrace.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'numpy', 'transformers', 'datasets', 'huggingface_hub', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
