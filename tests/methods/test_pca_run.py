"""pca in an audit of a tiny pair: figures beside the nulls', and what is written with a direction added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.worlds import rows, world

import finetrace as ft
from finetrace.core.page import Table
from finetrace.methods.pca.steer import added
from finetrace.models import open_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pca")


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Path, Path, list[Path]]:
    return world(folder, nulls=2)


@pytest.fixture(scope="module")
def found(folder: Path, pair: tuple[Path, Path, list[Path]]) -> Any:
    base, tuned, nulls = pair
    return ft.audit(
        str(base), str(tuned), data=rows(12), methods=["pca"], nulls=[str(null) for null in nulls], dose=False,
        out=folder / "out", options={"pca": {"steer": 1, "strength": 20.0, "layers": (0.0, 1.0)}},
    )  # fmt: skip


def test_a_large_change_is_larger_than_the_nulls(found: Any):
    results = found.results["pca"]
    values = {label: result.numbers["component_variance"].value for label, result in results.items()}
    assert values["self"] < 1e-6 * values["pair"]
    assert all(values["pair"] > 3 * value for label, value in values.items() if label.startswith("null:"))
    assert [layer.layer for layer in results["pair"].layers] == [0, 1]
    assert results["pair"].numbers["component_variance"].replicates is not None
    assert (
        sum(e["concentration"].n for e in results["pair"].slices.values()) == results["pair"].layers[0].tokens
    )


def test_steering_writes_other_texts_than_without(found: Any):
    data = found.results["pca"]["pair"].steered.data
    times, side = np.array(data["times"]), np.array(data["side"])
    texts = np.array(data["text"])
    assert set(times) == {0.0, 20.0, -20.0}
    assert set(side) == {"base", "tuned"}
    assert set(data["slice"]) == {"text", "dishes", "restricted"}
    for one in ("base", "tuned"):
        plain = texts[(side == one) & (times == 0)]
        pushed = texts[(side == one) & (times == 20)]
        assert len(plain) == len(pushed) == 6
        assert (plain != pushed).any()
    assert (texts[(side == "base") & (times == 0)] != texts[(side == "tuned") & (times == 0)]).any()
    tables = {block.key: block for block in found["pca"].page.blocks if isinstance(block, Table)}
    assert len(tables["steered"].rows) == len(texts) == 36


def test_a_hook_adds_after_its_block_and_is_gone(pair: tuple[Path, Path, list[Path]]):
    opened = open_pair(pair[0], pair[1])
    ids = torch.tensor([[1, 9, 10, 11]])

    def states() -> torch.Tensor:
        return opened.trunk("base", ids, torch.ones_like(ids), (0,), False).layers[0]

    plain = states()
    with opened.open("base") as model, added(model, 0, torch.ones(opened.d_model)):
        pushed = states()
    assert torch.allclose(pushed, plain + 1, atol=1e-5)
    assert torch.equal(states(), plain)
