"""The journal gives back exactly what was stored, and only what belongs here."""

from __future__ import annotations

from pathlib import Path

import torch

from finetrace.data import Shard
from finetrace.engine import journal

HERE = journal.environment(torch.device("cpu"), 4)
STATE = {
    "a": torch.tensor([1.0, float("nan"), -0.0], dtype=torch.float64),
    "n": torch.tensor(3),
    "e": torch.zeros(0, 2),
}


def shard(content: str = "abc", index: int = 0) -> Shard:
    return Shard(index=index, start=0, stop=1, content=content)


def test_round_trip_to_the_last_bit(tmp_path: Path):
    journal.store(tmp_path, shard(), STATE, HERE)
    assert journal.done(tmp_path, shard())
    back = journal.fetch(tmp_path, shard())
    assert {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in back.items()} == {
        name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in STATE.items()
    }


def test_other_content_at_the_same_index_is_not_done(tmp_path: Path):
    journal.store(tmp_path, shard("abc"), STATE, HERE)
    assert not journal.done(tmp_path, shard("abd"))
    assert not journal.done(tmp_path, shard("abc", index=1))


def test_a_broken_entry_is_done_again(tmp_path: Path):
    journal.store(tmp_path, shard(), STATE, HERE)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert not journal.done(tmp_path, shard())
    assert journal.stale(tmp_path, HERE) is None, "it says nothing of where it was made"


def test_another_machine_is_stale(tmp_path: Path):
    assert journal.stale(tmp_path, HERE) is None
    journal.store(tmp_path, shard(), STATE, HERE)
    assert journal.stale(tmp_path, HERE) is None
    assert "threads" in (journal.stale(tmp_path, {**HERE, "threads": 64}) or "")
