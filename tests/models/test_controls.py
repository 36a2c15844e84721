"""Negative controls: fine-tunes that are built to change nothing are read like others, and every figure is exactly zero."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.models.test_identity_layers import inserted
from tests.tiny import save_lora
from tests.worlds import rows

from finetrace.api.audit import run
from finetrace.api.found import Found
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.errors import ModelError

METHODS = ("kl", "diff_mining", "weight_spectrum")


def untrained(folder: Path, base: Path) -> Path:
    """An adapter as it is before its first step: B is zero."""
    made = save_lora(folder, base, name="untrained")
    file = made / "adapter_model.safetensors"
    save_file({key: tensor * ("lora_A" in key) for key, tensor in load_file(file).items()}, file)
    return made


def copied(folder: Path, base: Path) -> Path:
    return Path(shutil.copytree(base, folder / "copied"))


def deeper(folder: Path, base: Path) -> Path:
    return inserted(base, folder / "deep", (0, 3))


KINDS: dict[str, Callable[[Path, Path], Path | None]] = {
    "the base itself": lambda folder, base: None,
    "a copy": copied,
    "an adapter before training": untrained,
    "identity layers": deeper,
}


def audited(folder: Path, base: Path, tuned: Path | None, **fields: Any) -> Found:
    request = Request(
        str(base),
        None if tuned is None else str(tuned),
        data=rows(6),
        out=folder / "out",
        **{"methods": METHODS, "dose": False} | fields,
    )
    return run(request, check(request), Watch())


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_is_exactly_zero(kind: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("llama")
    found = audited(tmp_path, base, KINDS[kind](tmp_path, base), control=True)
    figures = {
        "kl": ("kl_mean", "reverse_kl_mean", "js_mean", "delta_nll_mean"),
        "diff_mining": ("promotion_mean", "suppression_mean"),
        "weight_spectrum": ("relative_norm", "frobenius", "changed_matrices"),
    }
    for method, keys in figures.items():
        values = found[method].numbers
        assert {values[key].value for key in keys} == {0.0}, method
        assert all(estimate.value in (0.0, None) for estimate in values.values()), method
    lines = {check.name: check.status for check in found.findings.preflight}
    assert lines["effect"] != "ok"
    assert found.findings.change != "beyond-nulls"


def test_with_nulls_a_control_is_within_them(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("llama")
    nulls = tuple(
        str(save_lora(tmp_path, base, seed=number, name=f"null{number}", targets=["q_proj"], scale=0.01))
        for number in (2, 3, 4)
    )
    found = audited(tmp_path, base, deeper(tmp_path, base), control=True, nulls=nulls, methods=("kl",))
    assert found.findings.change == "within-nulls"


@pytest.mark.parametrize("kind", ["a copy", "an adapter before training", "identity layers"])
def test_without_the_word_it_is_an_error(kind: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("llama")
    with pytest.raises(ModelError, match="changes nothing"):
        audited(tmp_path, base, KINDS[kind](tmp_path, base))
