"""Work handed to others: everything is done once, whoever dies; the errors that come back; and one process's bytes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.test_resume import ask, bytes_of
from tests.engine.test_run import limit
from tests.worlds import world

from finetrace.api.audit import run
from finetrace.api.request import Request, check
from finetrace.api.spread import Recipe, gpus_for, plan_there
from finetrace.api.watch import Watch
from finetrace.core.errors import BadInput, ModelError
from finetrace.engine import Shape
from finetrace.engine.shape import Workers
from finetrace.engine.spread import Event, Place, Pool, accept_all
from finetrace.models import Source
from finetrace.models.assembly import Plan
from finetrace.models.placement import Place as InPlace


@dataclass
class Fake:
    """A team inside this process, whose events come in any order. deaths: task -> how often its worker dies of it;
    births: how many workers die before they are open."""

    work: Callable[[Any], Any]
    order: random.Random = field(default_factory=lambda: random.Random(0))
    deaths: Counter[Any] = field(default_factory=Counter)
    births: int = 0
    nodes: Sequence[str] = ("here",)
    environment: Any = None
    pending: dict[int, Event] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)
    most: int = 0
    hired: int = 0

    def hire(self) -> int:
        self.hired += 1
        self.alive.add(self.hired)
        self.most = max(self.most, len(self.alive))
        if self.births:
            self.births -= 1
            self.pending[self.hired] = Event(self.hired, "lost", "no memory")
        else:
            place = Place(self.nodes[self.hired % len(self.nodes)], self.hired, "CPU", self.environment)
            self.pending[self.hired] = Event(self.hired, "open", place)
        return self.hired

    def give(self, worker: int, task: Any) -> None:
        assert worker in self.alive
        assert worker not in self.pending, "one task at a time"
        if self.deaths[task]:
            self.deaths[task] -= 1
            self.pending[worker] = Event(worker, "lost", "killed")
            return
        try:
            self.pending[worker] = Event(worker, "done", self.work(task))
        except BadInput as error:
            self.pending[worker] = Event(worker, "failed", error)

    def next(self) -> Event:
        worker = self.order.choice(sorted(self.pending))
        return self.pending.pop(worker)

    def dismiss(self, worker: int) -> None:
        self.alive.discard(worker)
        self.pending.pop(worker, None)

    def close(self) -> None:
        self.alive.clear()


@settings(max_examples=60, deadline=None)
@given(
    deaths=st.lists(st.integers(0, 3), max_size=12),
    size=st.integers(1, 6),
    births=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_every_task_is_done_once_whoever_dies(deaths: list[int], size: int, births: int, seed: int):
    lines: list[str] = []
    team = Fake(str, random.Random(seed), Counter(dict(enumerate(deaths))), births)
    pool = Pool(team, size, retries=3, tell=lines.append)
    tasks = list(range(len(deaths)))
    found = list(pool.map(tasks))
    assert sorted(found) == [(i, str(i)) for i in tasks]
    assert team.most <= min(size, len(tasks))
    lost = sum(deaths) + (births - team.births)
    assert team.hired <= size + lost, "a new worker only for a lost one"
    assert sum(deaths) <= len([line for line in lines if "was lost" in line]) <= lost
    assert sorted(pool.map(tasks)) == sorted(found), "the same workers go on with more work"


def test_a_task_that_kills_all_its_workers_is_given_up_and_the_others_go_on():
    team = Fake(str, deaths=Counter({1: 99}))
    found = dict(Pool(team, 2, retries=2).outcomes([0, 1, 2]))
    assert (found[0], found[2]) == ("0", "2")
    assert isinstance(found[1], ModelError)
    assert "lost its worker 3 times" in str(found[1])
    assert "killed" in str(found[1])
    with pytest.raises(ModelError, match="3 times"):
        list(Pool(Fake(str, deaths=Counter({1: 99})), 2, retries=2).map([0, 1, 2]))


def test_workers_that_never_open_are_not_hired_for_ever():
    team = Fake(str, births=99)
    with pytest.raises(ModelError, match="4 workers died while they opened"):
        list(Pool(team, 2, retries=3).map([0, 1, 2]))
    assert team.hired <= 6


def test_an_error_of_the_work_is_raised_or_stands_in_its_place():
    def work(task: int) -> int:
        if task == 1:
            raise BadInput("row 7 is no text")
        return task

    with pytest.raises(BadInput, match="row 7"):
        list(Pool(Fake(work), 2, retries=3).map([0, 1, 2]))
    found = dict(Pool(Fake(work), 2, retries=3).outcomes([0, 1, 2]))
    assert (found[0], str(found[1]), found[2]) == (0, "row 7 is no text", 2)


def test_what_was_broken_off_leaves_nothing_in_the_next_results():
    pool = Pool(Fake(str, random.Random(0)), 3, retries=3)
    for _ in pool.map(["a", "b", "c", "d"]):
        break
    assert sorted(pool.map(["x", "y", "z", "w"])) == [(0, "x"), (1, "y"), (2, "z"), (3, "w")]


def test_a_place_that_does_not_fit_is_left_out_by_name():
    fit = lambda place: "its processor is an AVX2" if place.node == "old" else None  # noqa: E731
    heard = 0
    for seed in range(40):
        lines: list[str] = []
        team = Fake(str, random.Random(seed), nodes=("old", "new"))
        found = list(Pool(team, 2, retries=3, tell=lines.append, fit=fit).map([0, 1, 2]))
        assert sorted(found) == [(0, "0"), (1, "1"), (2, "2")]
        unopened = any(
            event.kind == "open" and event.value.node == "old" for event in team.pending.values()
        )  # the other had done everything before
        assert lines == ([] if unopened else ["A worker on old is left out: its processor is an AVX2."])
        heard += bool(lines)
    assert heard > 20
    with pytest.raises(ModelError, match=r"No worker can be used. old: its processor is an AVX2"):
        list(Pool(Fake(str, nodes=("old",)), 2, retries=3, fit=fit).map([0, 1, 2]))
    assert accept_all(Place("old", 1, "CPU")) is None


# An audit whose workers are other pairs in this process.


class Stop(Exception):
    """A user who has waited long enough."""


@dataclass
class Impatient(Watch):
    """Stops the audit after so many steps of a bar."""

    patience: int = 3

    def advance(self, units: int) -> None:
        self.patience -= units > 0
        if self.patience < 0:
            raise Stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A world, and what one process finds in it."""
    folder = tmp_path_factory.mktemp("spread")
    world(folder, nulls=1)
    audit(asked(folder, "whole"))
    return folder, bytes_of(folder / "whole")


def asked(folder: Path, out: str, workers: Workers | None = None) -> Request:
    nulls, methods = (str(folder / "null_0"),), ("kl", "weight_spectrum")
    request = ask(folder, folder / out)
    return replace(request, nulls=nulls, methods=methods, workers=workers, dose=False)


def audit(request: Request, watch: Watch | None = None) -> list[str]:
    watch = watch or Watch()
    run(request, check(request), watch)
    return watch.notes


def in_process(monkeypatch: pytest.MonkeyPatch, unit: str | None = None, **changes: Any) -> list[Fake]:
    """Workers without Ray; the list fills with their teams. unit: their processor. changes: to what they are sent."""
    teams: list[Fake] = []

    def pool(make: Recipe, workers: Workers, *, gpus: float, fit: Any, tell: Any) -> Pool:
        station = replace(make, **changes)()
        environment = {**(station.environment or {}), **({"unit": unit} if unit else {})}
        teams.append(Fake(station.work, random.Random(1), environment=environment))
        return Pool(teams[-1], workers.count or 1, workers.retries, tell, fit)

    monkeypatch.setattr("finetrace.api.spread.cluster", lambda workers: nullcontext())
    monkeypatch.setattr("finetrace.api.spread.open_pool", pool)
    return teams


World = tuple[Path, "dict[str, bytes]"]


def test_shards_and_own_runs_made_elsewhere_are_the_same_bytes(whole: World, monkeypatch: pytest.MonkeyPatch):
    folder, wanted = whole
    teams = in_process(monkeypatch)
    notes = audit(asked(folder, "spread", Workers(count=3)))
    assert bytes_of(folder / "spread") == wanted
    assert any(name.endswith("weight_spectrum") for path in wanted for name in [str(Path(path).parents[1])])
    assert [team.hired for team in teams] == [3], "one team for the pass and the own runs"
    assert not teams[0].alive
    assert notes == ["Workers: 3 on here (CPU)."]
    assert not list((folder / "spread" / "runs").glob(".workers*"))


def test_nothing_starts_where_all_is_on_the_shelf(whole: World, monkeypatch: pytest.MonkeyPatch):
    folder, _ = whole
    teams = in_process(monkeypatch)
    audit(asked(folder, "whole", Workers(count=3)))
    assert teams == []


@pytest.mark.parametrize("first", ["workers", "one process"])
def test_what_one_began_the_other_ends_on_the_same_bytes(
    whole: World, monkeypatch: pytest.MonkeyPatch, first: str
):
    folder, wanted = whole
    out = f"began by {first}"
    teams = in_process(monkeypatch)
    both = (Workers(count=2), None) if first == "workers" else (None, Workers(count=2))
    with pytest.raises(Stop):
        audit(asked(folder, out, both[0]), Impatient())
    assert len(list((folder / out / "runs").rglob("*.safetensors"))) >= 3, "some shards are in the journal"
    audit(asked(folder, out, both[1]))
    assert bytes_of(folder / out) == wanted
    assert not any(team.alive for team in teams)


def test_a_worker_on_another_processor_is_refused_by_name(whole: World, monkeypatch: pytest.MonkeyPatch):
    folder, _ = whole
    in_process(monkeypatch, unit="AVX9")
    with pytest.raises(ModelError, match=r"here: the processor is AVX9 there and .* here, which moves"):
        audit(asked(folder, "elsewhere", Workers(count=2)))


def test_other_weights_and_other_texts_are_refused(whole: World, monkeypatch: pytest.MonkeyPatch):
    folder, _ = whole
    in_process(monkeypatch, identities={"tuned": "0" * 64})
    with pytest.raises(ModelError, match="holds other weights for 'tuned'"):
        audit(asked(folder, "weights", Workers(count=2)))
    in_process(monkeypatch, tokenizer="0" * 64)
    with pytest.raises(ModelError, match="tokenizer is another"):
        audit(asked(folder, "tokenizer", Workers(count=2)))
    in_process(monkeypatch, shape=Shape(4, 200))
    with pytest.raises(RuntimeError, match="not the one that was asked for"):
        audit(asked(folder, "texts", Workers(count=2)))


def test_a_worker_without_room_halves_its_batch_and_says_so(whole: World, monkeypatch: pytest.MonkeyPatch):
    folder, wanted = whole
    in_process(monkeypatch)
    limit(monkeypatch, 2)
    notes = audit(asked(folder, "tight", Workers(count=2)))
    assert notes[0] == "Out of memory: going on with batches of 2."
    assert set(bytes_of(folder / "tight")) == set(wanted), "the key is the request's"


@pytest.mark.parametrize(
    ("base", "tuned", "there", "gpus"),
    [
        ("cpu", None, ("cpu", None), 0),
        ("cuda", None, ("cuda:0", None), 1),
        ("cuda:1", None, ("cuda:0", None), 1),
        ("cuda:3", "cuda:1", ("cuda:0", "cuda:1"), 2),
        ("cuda:1", "cuda:1", ("cuda:0", "cuda:0"), 1),
    ],
)
def test_a_worker_counts_its_own_gpus(
    base: str, tuned: str | None, there: tuple[str, str | None], gpus: int, monkeypatch: pytest.MonkeyPatch
):
    where = Source("base", Path("/base"), "full")
    beside = None if tuned is None else InPlace(torch.device(tuned))
    plan = Plan(where, {}, torch.float32, torch.device(base), tuned=beside)
    found = plan_there(plan)
    assert (str(found.device), found.tuned and str(found.tuned.device)) == there
    assert gpus_for(plan) == gpus
    spread = replace(plan, device=torch.device("cuda", 0), spread=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpus_for(spread) == 4
    assert plan_there(spread) == spread
