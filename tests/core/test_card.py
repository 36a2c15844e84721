"""Methods are found by being there; a broken card hides no other."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from finetrace.core.card import Method, discover, method
from finetrace.core.errors import BadInput
from finetrace.core.runkey import digest, run_key


def test_finds_kl_and_names_a_near_miss():
    found, broken = discover()
    assert isinstance(found["kl"], Method)
    assert broken == ()
    assert method("kl").primary == "kl_mean"
    with pytest.raises(BadInput, match=r"There is no method 'kll'\. Did you mean 'kl'\?"):
        method("kll")


def test_a_broken_card_is_listed_with_its_error(tmp_path, monkeypatch):
    folder = tmp_path / "strange_methods"
    for name, body in {"good": "", "bad": "import nowhere_to_be_found", "odd": "METHOD = 3"}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(body or GOOD)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found, broken = discover("strange_methods")
    assert list(found) == ["good"]
    assert {card.name: card.error.split(":")[0] for card in broken} == {
        "bad": "ModuleNotFoundError",
        "odd": "METHOD is a int, not a finetrace.core.card.Method",
    }


GOOD = textwrap.dedent("""
    from dataclasses import dataclass
    from finetrace.core.card import Method, Needs

    @dataclass(frozen=True)
    class Config: ...

    METHOD = Method("good", 1, "", Config, lambda config: Needs(), "x")
""")


def test_listing_methods_imports_nothing_heavy():
    code = "import sys; from finetrace.core.card import discover; discover(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pyarrow", "plotly"}
    assert not heavy & set(eval_list(done.stdout))


def eval_list(text: str) -> list[str]:
    return [part.strip("' ") for part in text.strip("[]\n").split(",")]


def test_run_keys_depend_on_content_and_not_on_order():
    assert run_key({"a": 1, "b": (1, 2)}) == run_key({"b": [1, 2], "a": 1})
    assert run_key({"a": 1}) != run_key({"a": 1.5})
    assert len(run_key({})) == 20
    with pytest.raises(TypeError, match="run key"):
        digest({"a": object()})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})
