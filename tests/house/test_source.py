"""What the source may not hold, read from its syntax: nothing here imports the package."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 450, 70

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {
    "eval",
    "exec",
    "__import__",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
}
TRUE_ARGUMENTS = {"allow_pickle", "trust_remote_code", "shell"}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def _caught(node: ast.ExceptHandler) -> set[str]:
    if node.type is None:
        return {"everything"}
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return {_dotted(kind) for kind in kinds} & {"Exception", "BaseException"}


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        for name in PICKLES & set(_imported(node)):
            yield node.lineno, f"imports {name}"  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(node, ast.Call) and _dotted(node.func) in CALLS:
            yield node.lineno, f"calls {_dotted(node.func)}"
        if isinstance(node, ast.keyword) and node.arg in TRUE_ARGUMENTS and _is_true(node.value):
            yield node.value.lineno, f"passes {node.arg}=True"
        if isinstance(node, ast.ExceptHandler):
            for kind in _caught(node):
                yield node.lineno, f"catches {kind}"
        if isinstance(node, ast.Assert):
            yield node.lineno, "asserts: raise an error that says what to do, or drop it"


def _found(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in _offences(tree)]


def test_source_holds_no_pickle_eval_broad_except_or_assert():
    assert [offence for path in SOURCES for offence in _found(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "try:\n    pass\nexcept Exception:\n    pass",
        "try:\n    pass\nexcept (OSError, BaseException):\n    pass",
        "try:\n    pass\nexcept:\n    pass",
        "assert ready",
    ],
)
def test_each_offence_is_seen(code: str):
    assert len(list(_offences(ast.parse(code)))) == 1


def test_what_only_looks_like_an_offence_is_let_through():
    fine = "model.eval()\nload(x, trust_remote_code=asked)\ntry:\n    pass\nexcept OSError:\n    raise"
    assert list(_offences(ast.parse(fine))) == []


def test_files_and_functions_stay_readable():
    long: list[str] = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MOST_LINES:
            long.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # The body alone: a command's signature is a schema, as long as it has options.
                lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert long == []


def test_nothing_is_left_to_do_in_a_comment():
    marks: list[str] = []
    for path in SOURCES:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT and any(
                m in token.string for m in ("TODO", "FIXME", "XXX", "HACK")
            ):
                marks.append(f"{path.relative_to(ROOT)}:{token.start[0]} {token.string}")
    assert marks == []
