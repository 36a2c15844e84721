"""Killed at any moment and run again, an audit ends on the same bytes."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from tests.worlds import rows, world

from finetrace.api.audit import run
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.shelf import SCRATCH
from finetrace.engine import Shape


def ask(folder: Path, out: Path, batch_size: int = 4) -> Request:
    return Request(
        base=str(folder / "base"),
        tuned=str(folder / "lora"),
        data=rows(24),
        nulls=tuple(str(folder / f"null_{i}") for i in range(3)),
        out=out,
        shape=Shape(batch_size=batch_size, shard_tokens=80),
    )


def audit(request: Request) -> None:
    run(request, check(request), Watch())


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every result's files but the manifests, which hold times."""
    kept = ("result.json", "arrays.safetensors", "tables.parquet")
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.name in kept}


def killed_after(calls: int, request: Request) -> bool:
    """Runs the audit in a child that kills itself (SIGKILL) at the n-th forward or rename; was it killed?"""
    child = os.fork()
    if child == 0:
        left = calls

        def count(real):
            def counted(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return counted

        from finetrace.models import Pair

        Pair.trunk = count(Pair.trunk)  # pyright: ignore[reportAttributeAccessIssue]
        os.replace = count(os.replace)
        os.fsync = count(os.fsync)
        audit(request)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to be killed cheaply")
def test_killed_at_ten_random_moments_ends_on_the_same_bytes(tmp_path: Path):
    torch.set_num_threads(1)
    world(tmp_path, nulls=3)
    audit(ask(tmp_path, tmp_path / "whole"))
    wanted = bytes_of(tmp_path / "whole")
    assert len(wanted) >= 2 * 8  # pair, self, three nulls and three doses: result.json and arrays at least
    rng, kills = random.Random(0), 0
    for moment in [rng.randint(1, 420) for _ in range(10)]:
        out = tmp_path / f"killed_{moment}"
        request = ask(tmp_path, out)
        kills += killed_after(moment, request)
        audit(request)
        assert bytes_of(out) == wanted, moment
        scratch = out / "runs" / SCRATCH
        assert not scratch.exists() or not any(scratch.rglob("*.safetensors")), (
            "journals go when runs are whole"
        )
    assert kills >= 8, "the moments must fall inside the run"


def test_what_is_whole_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world(tmp_path, nulls=3)
    request = ask(tmp_path, tmp_path / "out")
    audit(request)
    wanted = bytes_of(tmp_path / "out")

    def never(*args, **kwargs):
        raise AssertionError("a whole run was made again")

    monkeypatch.setattr("finetrace.api.maker.run_pass", never)
    audit(request)
    assert bytes_of(tmp_path / "out") == wanted


def test_a_changed_result_is_found_out_and_made_again(tmp_path: Path):
    world(tmp_path, nulls=3)
    request = ask(tmp_path, tmp_path / "out")
    audit(request)
    wanted = bytes_of(tmp_path / "out")
    victim = next((tmp_path / "out").rglob("result.json"))
    victim.write_text(victim.read_text().replace("1", "2", 1))
    audit(request)
    assert bytes_of(tmp_path / "out") == wanted


def test_adding_a_null_invalidates_nothing(tmp_path: Path):
    world(tmp_path, nulls=4)
    audit(ask(tmp_path, tmp_path / "out"))
    before = bytes_of(tmp_path / "out")
    request = ask(tmp_path, tmp_path / "out")
    from dataclasses import replace

    audit(replace(request, nulls=(*request.nulls, str(tmp_path / "null_3"))))
    after = bytes_of(tmp_path / "out")
    assert before.items() <= after.items()
    assert any("null_3" in name for name in after)


def test_a_journal_from_elsewhere_is_said_and_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world(tmp_path, nulls=3)
    request = ask(tmp_path, tmp_path / "out")
    monkeypatch.setattr(
        "finetrace.engine.journal.environment", lambda device, batch: {"unit": "another machine"}
    )
    assert killed_after(150, request)
    monkeypatch.undo()
    watch = Watch()
    run(request, check(request), watch)
    assert any("another machine" in note and "again from the start" in note for note in watch.notes)
    audit(ask(tmp_path, tmp_path / "whole"))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
