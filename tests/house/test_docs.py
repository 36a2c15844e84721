"""What the documents say can be typed, and what they point at exists."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "design").glob("*.md")),
]
# What `make demo` runs, and the gate runs that: a second time would cost minutes and say nothing new.
BY_MAKE = (("finetrace", "demo"),)
# Shown so that a newcomer can paste them; the gate itself runs the make lines.
NOT_OURS = ("make", "git", "cd", "pip", "python3", "source")


def _fenced(path: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _commands() -> list[tuple[str, ...]]:
    """Every distinct command in the guides' bash blocks, in reading order, without its comment."""
    lines = [tuple(shlex.split(line, comments=True)) for path in GUIDES for line in _fenced(path)]
    return list(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands: a guide's later ones read what its earlier ones wrote."""
    return tmp_path_factory.mktemp("guides")


@pytest.mark.parametrize(
    "command", [c for c in _commands() if c[0] == "finetrace" and c not in BY_MAKE], ids=" ".join
)
def test_a_documented_command_runs_offline(command: tuple[str, ...], desk: Path, lent_shelf: Path):
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    environment["FINETRACE_SHELF"] = str(lent_shelf)
    done = subprocess.run(
        [sys.executable, "-m", "finetrace", *command[1:]],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr


def test_what_is_left_to_make_is_what_make_runs():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"-m {shlex.join(command)} $(ARGS)" in recipe for command in BY_MAKE)


def test_bash_blocks_hold_only_what_can_be_run_or_is_known():
    assert [shlex.join(c) for c in _commands() if c[0] != "finetrace" and c[0] not in NOT_OURS] == []


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_links_between_documents_lead_somewhere():
    dead: list[str] = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / name) if name else page
            if not path.exists() or (anchor and anchor not in _anchors(path.read_text(encoding="utf-8"))):
                dead.append(f"{page.name}: {target}")
    assert dead == []


def _said() -> list[str]:
    """Every literal piece of text in the source; pieces of one f-string are apart."""
    trees = (ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / "src").rglob("*.py"))
    return [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_the_errors_page_quotes_messages_that_are_still_given():
    said = _said()
    quoted = re.findall(
        r"^\| `([^`]+)`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    pieces = [piece.strip() for quote in quoted for piece in re.split(r"…", quote) if piece.strip()]
    assert len(pieces) > 10
    assert [piece for piece in pieces if not any(piece in text for text in said)] == []
