"""A file of examples: every latent's own texts, at their largest codes, whatever is offered first; left by a method on request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dictionaries.desks import desk_of

from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.gallery import EXAMPLES, gallery
from finetrace.dictionaries.reading import tokens
from finetrace.engine import Step
from finetrace.methods.sae_difference import Config
from finetrace.methods.sae_difference.run import run
from finetrace.store.examples import Examples

D, TEXTS, LENGTH = 4, 80, 9


def plain() -> Dictionary:
    """Latent i reads coordinate i of the change; the last can never fire."""
    reads = torch.eye(D)
    reads[-1] = 0
    return Dictionary(
        encoder=reads.T[None].contiguous(),
        encoder_bias=torch.zeros(D),
        decoder=torch.eye(D)[None],
        decoder_bias=torch.zeros(1, D),
        threshold=0.0,
        kind="relu",
        mean=torch.zeros(1, D),
        scale=torch.ones(1),
        owner=torch.zeros(D, dtype=torch.int8),
    )


@pytest.fixture(scope="module")
def moved() -> torch.Tensor:
    """[text, pos, d]: a coordinate of each text is larger the later the text; about a half of all are below 0."""
    drawn = torch.randn(TEXTS, LENGTH, D, generator=torch.Generator().manual_seed(0))
    drawn[torch.arange(TEXTS), 4, torch.arange(TEXTS) % 3] = 4.0 + torch.arange(TEXTS) / 10
    return drawn


def desk(moved: torch.Tensor, folder: Path) -> Any:
    base = torch.zeros_like(moved)
    ids = torch.randint(0, 50, moved.shape[:2], generator=torch.Generator().manual_seed(1))
    return desk_of(base, moved, torch.eye(D), folder, ids=ids)


def write(path: Path, one: Any, some: Dictionary, largest: np.ndarray, order: int = 1) -> Examples:
    steps: list[Step] = list(one.steps([0]))[::order]
    with gallery(path, some, "difference", largest, one.subject, k=3) as made:
        for step in steps:
            made.see(step, tokens(step, 0))
    return Examples(path)


def test_each_live_latent_has_its_own_texts_at_their_codes(moved, tmp_path, monkeypatch):
    one = desk(moved, tmp_path)
    counted = moved[:, 1:-1].clamp(min=0)
    largest = np.array([*counted.amax((0, 1)).tolist()[:3], np.nan])
    found = write(tmp_path / "a.sqlite", one, plain(), largest)
    assert [group.name for group in found.groups()] == ["latent 0", "latent 1", "latent 2"]
    for latent in range(3):
        score = counted[:, :, latent].amax(1)
        best = found.best(f"latent {latent}")
        assert [round(e.score, 5) for e in best] == [
            round(v, 5) for v in score.sort(descending=True).values[:3].tolist()
        ]
        for example in best:
            text = int((score - example.score).abs().argmin())
            row = next(step for step in one.steps([0]) if text in step.row)
            assert example.ids.tolist() == row.ids[row.row == text][0].tolist()
            assert example.slice == ("even", "odd")[text % 2]
            assert np.isnan(example.values[[0, -1]]).all(), "the first token, and the last, do not count"
            assert np.allclose(example.values[1:-1], counted[text, :, latent])
        middle = found.bin(f"latent {latent}", 1)
        assert all(0.25 * largest[latent] < e.score <= 0.5 * largest[latent] for e in middle)
    few = lambda size, latents: (slice(at, min(at + 3, size)) for at in range(0, size, 3))  # noqa: E731
    monkeypatch.setattr("finetrace.dictionaries.gallery.portions", few)
    again = write(tmp_path / "b.sqlite", one, plain(), largest, order=-1)
    assert again.path.read_bytes() == found.path.read_bytes(), "whatever came first, and in what portions"


def test_a_method_leaves_the_file_on_request(moved, tmp_path):
    config = Config(latents=6, k=1, batch=64, steps=20, passages=0)
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    found = run(replace(config, examples=2), desk(moved, tmp_path / "with"))
    bare = run(config, desk(moved, tmp_path / "without"))
    assert {key: one.value for key, one in found.numbers.items()} == {
        k: v.value for k, v in bare.numbers.items()
    }
    assert not (tmp_path / "without" / EXAMPLES).exists()
    file = Examples(tmp_path / "with" / EXAMPLES)
    live = np.flatnonzero(~np.asarray(found.latents.data["dead"]))
    assert [group.name for group in file.groups()] == [f"latent {i}" for i in live]
    assert file.about["of"] == {"layer": 3, "reads": "difference", "unit": "code"}
    largest = np.asarray(found.latents.data["largest_code"])
    for i in live.tolist():
        assert file.best(f"latent {i}")[0].score == pytest.approx(largest[i], rel=1e-5)
