"""The rules between rooms bite: each is broken on purpose in a copy, and the check has to see it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "finetrace"
CARDS = sorted(p.parent.name for p in (PACKAGE / "methods").glob("*/__init__.py"))


def _lint(source: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--config",
        str(ROOT / "pyproject.toml"),
        "--no-cache",
    ]
    environment = {**os.environ, "PYTHONPATH": str(source), "NO_COLOR": "1"}
    return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's Python files alone, where a rule can be broken."""
    only_python = lambda folder, names: [n for n in names if "." in n and not n.endswith(".py")]  # noqa: E731
    shutil.copytree(PACKAGE, tmp_path / "finetrace", ignore=only_python)
    return tmp_path


def test_the_rooms_as_they_are_keep_the_rules(copy: Path):
    done = _lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "code", "rule"),
    [
        ("stats/broken.py", "import finetrace.engine", "Rooms depend downward only"),
        ("core/broken.py", "def later():\n    from finetrace import models", "Rooms depend downward only"),
        ("methods/broken/__init__.py", "from finetrace import finetune", "Rooms depend downward only"),
        ("utils/__init__.py", "", "Rooms depend downward only"),
        ("methods/broken/__init__.py", "import finetrace.methods.kl", "Methods do not import one another"),
        ("methods/broken/__init__.py", "import plotly", "Only drawing and report import plotting libraries"),
        ("core/broken.py", "def later():\n    import torch", "The core and the statistics run without torch"),
    ],
)
def test_a_broken_rule_is_seen(copy: Path, file: str, code: str, rule: str):
    path = copy / "finetrace" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")
    done = _lint(copy)
    assert done.returncode == 1
    assert f"{rule} BROKEN" in done.stdout


def _loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter holds after importing `module`, and did not hold before."""
    code = f"import json, sys; held = set(sys.modules); import {module}; print(json.dumps(sorted(set(sys.modules) - held)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return set(json.loads(done.stdout))


def _foreign(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] not in {*sys.stdlib_module_names, "finetrace"}}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_loads_the_standard_library_and_the_core_only(name: str):
    loaded = _loaded_by(f"finetrace.methods.{name}")
    assert _foreign(loaded) == set()
    added = {module for module in loaded - _loaded_by("finetrace") if module.startswith("finetrace.")}
    assert {m for m in added if not m.startswith("finetrace.core")} == {
        "finetrace.methods",
        f"finetrace.methods.{name}",
    }


def test_importing_finetrace_loads_the_standard_library_only():
    assert _foreign(_loaded_by("finetrace")) == set()
