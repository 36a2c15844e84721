"""A real Ray, started once: two workers give one process's bytes, also where one of them is killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.api.ray_jobs import first_time, job
from tests.engine.test_resume import bytes_of
from tests.worlds import rows, world

from finetrace.api.audit import run
from finetrace.api.request import Request, check
from finetrace.api.spread import Recipe, recipe_for
from finetrace.api.watch import Watch
from finetrace.core.errors import BadInput, ConfigErrors, ModelError
from finetrace.engine import Shape
from finetrace.engine.ray_pool import Station, cluster, map_jobs
from finetrace.engine.shape import Workers

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
WORKERS = Workers(count=2, retries=1)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    before = settings()
    with cluster(WORKERS):
        yield
    assert settings() == before


def settings() -> dict[str, str]:
    """Who may run code on a Ray of this process: a secret that goes with it."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


@dataclass(frozen=True)
class Deadly(Recipe):
    """One of the workers that open this is killed in the middle of its second task."""

    flag: Path = Path()

    def __call__(self) -> Station:
        station, done = super().__call__(), 0

        def work(task: Any) -> Any:
            nonlocal done
            done += 1
            made = station.work(task)
            if done == 2 and first_time(self.flag):
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        return replace(station, work=work)


def test_two_workers_one_of_them_killed_give_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world(tmp_path, nulls=1)
    request = Request(
        base=str(tmp_path / "base"),
        tuned=str(tmp_path / "lora"),
        data=rows(24),
        nulls=(str(tmp_path / "null_0"),),
        out=tmp_path / "one",
        shape=Shape(4, 80),
        methods=("kl", "diff_mining", "weight_spectrum"),
        dose=False,
    )
    run(request, check(request), Watch())
    wanted = bytes_of(tmp_path / "one")

    made: list[Recipe] = []

    def deadly(*args: Any) -> Recipe:
        made.append(Deadly(**vars(recipe_for(*args)), flag=tmp_path / "killed"))
        return made[-1]

    monkeypatch.setattr("finetrace.api.maker.recipe_for", deadly)
    watch = Watch()
    spread = replace(request, out=tmp_path / "two", workers=WORKERS)
    run(spread, check(spread), watch)
    assert bytes_of(tmp_path / "two") == wanted
    assert (tmp_path / "killed").exists()
    assert [note for note in watch.notes if "was lost" in note], watch.notes
    assert [note for note in watch.notes if note.startswith(("Workers: 2 on ", "Workers: 3 on "))], (
        watch.notes
    )
    assert len(made) == 1


def test_jobs_come_back_as_results_or_as_the_errors_that_they_raised(tmp_path: Path):
    items = [(what, str(tmp_path)) for what in ("a", "wrong", "dies once", "dies", "broken", "b")]
    lines: list[str] = []
    found = dict(map_jobs(job, items, WORKERS, lines.append))
    assert sorted(found) == list(range(6))
    assert [found[i] for i in (0, 2, 5)] == ["a is done", "dies once is done", "b is done"]
    assert type(found[1]) is ConfigErrors
    assert str(found[1]) == "no such method; no such organism"
    assert found[1].exit_code == 2
    assert type(found[3]) is ModelError
    assert "lost its worker 2 times" in str(found[3])
    assert isinstance(found[4], ZeroDivisionError)
    assert "a bug" in str(found[4])
    assert len([line for line in lines if "was lost" in line]) == 3
    assert list(map_jobs(job, [], WORKERS)) == []


def test_a_worker_that_no_node_can_hold_is_refused():
    with pytest.raises(BadInput, match="no room for a worker with 1e\\+06 CPUs"):
        list(map_jobs(job, [("a", "")], Workers(cpus=1e6)))
