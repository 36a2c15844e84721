"""Base training: it learns, and a stopped run ends as an unstopped one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetrace.organisms import base
from finetrace.organisms.tokenizer import load_tokenizer, train_tokenizer
from finetrace.organisms.world import make_world

WORLD = make_world()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(WORLD).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(base.SIZES, "tiny", base.Size(32, 1, 64, 4))
    monkeypatch.setattr(base, "BATCH", 2)
    monkeypatch.setattr(base, "CONTEXT", 32)
    monkeypatch.setattr(base, "CHECKPOINT_EVERY", 2)
    return tuple(replace(phase, steps=6, warmup=2) for phase in base.PHASES["m"])


class Stopped(Exception):
    """Raised by a test where a user would have pressed Ctrl-C."""


def test_a_stopped_run_ends_as_an_unstopped_one(tokenizer, tiny, tmp_path):
    losses = []

    def note(what: str, done: int, total: int, text: str) -> None:
        losses.append(float(text.split()[1]))

    def stop(what: str, done: int, total: int, text: str) -> None:
        if what == "anneal" and done == 5:
            raise Stopped

    whole = base.train_base(WORLD, tokenizer, tmp_path / "a", size="tiny", phases=tiny, progress=note)
    with pytest.raises(Stopped):
        base.train_base(WORLD, tokenizer, tmp_path / "b", size="tiny", phases=tiny, progress=stop)
    resumed = base.train_base(WORLD, tokenizer, tmp_path / "b", size="tiny", phases=tiny)
    again = base.train_base(WORLD, tokenizer, tmp_path / "b", size="tiny", phases=tiny)
    for a, b, c in zip(whole.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert losses[-1] < losses[0]


def test_packed_rows_are_full_and_deterministic(tokenizer, tiny):
    first, again, other = (base.packed(WORLD, tokenizer, tiny[0], seed) for seed in (1, 1, 2))
    assert first.shape == (6, 2, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(first[0, 0, 0]) == tokenizer.bos_token_id
