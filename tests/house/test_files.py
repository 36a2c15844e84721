"""The files around the source agree with one another, and with a machine that is not this one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Folders of a build machine, at the start of a path: such a path works nowhere else.
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:work|root|opt)/\w")
UNTRACKED = {
    ".git",
    ".venv",
    "__pycache__",
    "runs",
    "build",
    "dist",
    "finetrace-demo",
    "finetrace-audit",
    ".scratch",
}


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _project_files() -> list[Path]:
    """What git would commit; in an unpacked archive, everything but what make and the tools write."""
    if (ROOT / ".git").exists():
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [
        ROOT / p for p in found if not any(part in UNTRACKED or part.endswith("_cache") for part in p.parts)
    ]


def _requirements() -> list[Requirement]:
    return [
        Requirement(line) for line in [*PROJECT["dependencies"], *(r for rs in EXTRAS.values() for r in rs)]
    ]


def _pins() -> dict[str, str]:
    lines = [line for line in _text("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    named = {
        str(p.relative_to(ROOT)): m.group()
        for p in _project_files()
        if (m := MACHINE_PATH.search(p.read_bytes()))
    }
    assert named == {}


@pytest.mark.parametrize(
    ("parts", "named"), [((b"'", b"opt", b"wheels'"), True), ((b"at home", b"work", b"school"), False)]
)
def test_a_folder_of_the_machine_is_told_from_a_word(parts: tuple[bytes, ...], named: bool):
    assert bool(MACHINE_PATH.search(b"/".join(parts))) == named


def test_the_version_is_the_same_everywhere():
    citation = re.search(r"^version: (\S+)$", _text("CITATION.cff"), re.MULTILINE)
    changelog = re.search(r"^## (\S+) \((\S+)\)$", _text("CHANGELOG.md"), re.MULTILINE)
    released = re.search(r'^date-released: "(\S+)"$', _text("CITATION.cff"), re.MULTILINE)
    assert citation
    assert changelog
    assert released
    assert citation[1] == changelog[1] == PROJECT["version"]
    assert released[1] == changelog[2]


@pytest.mark.parametrize(
    "name", ["LICENSE", "SECURITY.md", "ACCEPTABLE_USE.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_the_papers_are_here(name: str):
    assert _text(name).strip()


def test_the_licence_is_the_one_that_the_project_declares():
    assert _text("LICENSE").startswith("MIT License")
    assert PROJECT["license"] == "MIT"
    assert "license: MIT" in _text("CITATION.cff")


def test_the_readme_shows_the_two_commands_and_make_has_them():
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", _text("README.md"), re.MULTILINE | re.DOTALL))
    shown = set(re.findall(r"^make (\w+)", blocks, re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets


def test_every_requirement_has_an_upper_bound():
    loose = [str(r) for r in _requirements() if not any(s.operator in ("<", "<=", "==") for s in r.specifier)]
    assert loose == []


def test_constraints_pin_what_is_required_inside_its_bounds_and_name_no_host():
    pins = _pins()
    assert next(iter(pins)) == "torch"
    assert not [v for v in pins.values() if "+" in v or "/" in v]
    needed = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["dev"]]]
    assert [r.name for r in needed if canonicalize_name(r.name) not in pins] == []
    pinned = [r for r in _requirements() if canonicalize_name(r.name) in pins]
    assert [str(r) for r in pinned if not r.specifier.contains(pins[canonicalize_name(r.name)])] == []


def _imports() -> dict[str, str]:
    """Every library outside the standard one that src imports, lazily or not -> one place that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {n.split(".")[0]: f"{path.name}:{node.lineno}" for n in names}  # pyright: ignore
    known = {*sys.stdlib_module_names, "finetrace"}
    return {name: where for name, where in found.items() if name not in known}


def test_whatever_is_imported_is_declared():
    declared = {canonicalize_name(r.name) for r in _requirements()}
    owners = packages_distributions()
    undeclared = {
        name: where
        for name, where in _imports().items()
        if not declared & {canonicalize_name(owner) for owner in [*owners.get(name, ()), name]}
    }
    assert undeclared == {}


def test_every_extra_that_an_error_offers_exists():
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    offered = set(re.findall(r"finetrace\[(\w+)\]", sources)) | set(
        re.findall(r"MissingExtra\([^)]*,\s*\"(\w+)\"\)", sources)
    )
    assert offered <= set(EXTRAS)


def test_the_gate_is_runnable():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)
