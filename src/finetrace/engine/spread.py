"""Work handed to other processes: who gets what, and what happens when one of them dies. Nothing here knows Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from finetrace.core.errors import ModelError

if TYPE_CHECKING:
    from finetrace.data import Shard
    from finetrace.engine.journal import Environment
    from finetrace.engine.observer import Contrast, Job

__all__ = ["Event", "Place", "Pool", "Spread", "Task", "Team", "accept_all", "task"]


@dataclass(frozen=True)
class Task:
    """A shard, and who lacks it: (method, contrast) of every job."""

    shard: Shard
    readers: tuple[tuple[str, Contrast], ...]


def task(shard: Shard, jobs: Sequence[Job]) -> Task:
    return Task(shard, tuple((job.method, job.contrast) for job in jobs))


class Spread(Protocol):
    """Reads shards in other processes."""

    def shards(self, tasks: Sequence[Task]) -> Iterator[tuple[Shard, list[bytes]]]:
        """Every task's shard with its journal entries, one a reader, in the order in which they are made; made on what this
        process would make them on."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a worker runs. node: the host's name. device: as a user knows it. environment: what a figure's last bit may
    depend on there; None where nothing does."""

    node: str
    pid: int
    device: str
    environment: Environment | None = None


@dataclass(frozen=True)
class Event:
    """What became of a worker. value: of "open" its Place; of "done" what it made; of "failed" the error that its work
    raised; of "lost" why, in words."""

    worker: int
    kind: Literal["open", "done", "failed", "lost"]
    value: Any


class Team(Protocol):
    """Processes that can be hired and lost. A hired one opens what it needs by itself, and says so with an event."""

    def hire(self) -> int:
        """A new worker's number."""
        ...

    def give(self, worker: int, task: Any) -> None: ...

    def next(self) -> Event:
        """What happens next; waits for it. Only called while somebody is opening or at work."""
        ...

    def dismiss(self, worker: int) -> None: ...

    def close(self) -> None: ...


Fit = Callable[[Place], "str | None"]
Tell = Callable[[str], None]


def accept_all(place: Place) -> None:
    """Any place will do."""


class Pool:
    """Keeps at most `size` workers of a team busy, and never more than there is work for. A lost worker's task is done
    again by another, at most `retries` times. fit: why a place cannot be used, or None."""

    def __init__(
        self, team: Team, size: int, retries: int, tell: Tell = lambda line: None, fit: Fit = accept_all
    ) -> None:
        self._team, self._size, self._retries, self._tell, self._fit = team, size, retries, tell, fit
        self._opening: set[int] = set()
        self._places: dict[int, Place] = {}
        self._idle: deque[int] = deque()
        self._stillborn = 0
        self._unfit: list[str] = []
        self.places: list[Place] = []
        """Of all workers that were ever open."""

    def map(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(index, what was made of the task), as they come; the first error is raised."""
        for index, made in self.outcomes(tasks):
            if isinstance(made, Exception):
                raise made
            yield index, made

    def outcomes(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """As `map`, but an error of one task stands in its place, and the others go on."""
        waiting, at, tries = deque(range(len(tasks))), dict[int, int](), Counter[int]()
        while waiting or at:
            self._staff(len(waiting) + len(at))
            while waiting and self._idle:
                worker = self._idle.popleft()
                at[worker] = waiting.popleft()
                self._team.give(worker, tasks[at[worker]])
            event = self._team.next()
            index = at.pop(event.worker, None)
            if event.kind == "lost":
                self._drop(event)
                if index is not None and tries[index] < self._retries:
                    tries[index] += 1
                    waiting.appendleft(index)
                elif index is not None:
                    yield index, ModelError(_given_up(tries[index] + 1, event.value))
            elif event.kind == "open":
                self._admit(event.worker, event.value)
            elif index is None and event.worker in self._opening:
                raise event.value
            else:
                self._idle.append(event.worker)
                if index is not None:  # else left over from work that was broken off
                    yield index, event.value

    def close(self) -> None:
        self._team.close()

    def _staff(self, work: int) -> None:
        while len(self._opening) + len(self._places) < min(self._size, work):
            self._opening.add(self._team.hire())

    def _admit(self, worker: int, place: Place) -> None:
        self._opening.discard(worker)
        reason = self._fit(place)
        if reason is None:
            self._places[worker] = place
            self.places.append(place)
            self._idle.append(worker)
            self._stillborn = 0
            return
        self._team.dismiss(worker)
        self._size -= 1
        self._unfit.append(f"{place.node}: {reason}")
        if self._size == 0:
            raise ModelError(f"No worker can be used. {'; '.join(dict.fromkeys(self._unfit))}.")
        self._tell(f"A worker on {place.node} is left out: {reason}.")

    def _drop(self, event: Event) -> None:
        place = self._places.pop(event.worker, None)
        if event.worker in self._idle:
            self._idle.remove(event.worker)
        self._team.dismiss(event.worker)
        if event.worker in self._opening:
            self._opening.discard(event.worker)
            self._stillborn += 1
            if self._stillborn > self._retries:
                raise ModelError(
                    f"{self._stillborn} workers died while they opened the models, the last because {event.value}: "
                    "give each more memory, or use fewer of them on a machine."
                )
        where = f" on {place.node}" if place else ""
        self._tell(f"A worker{where} was lost ({event.value}): another does its work.")


def _given_up(times: int, why: str) -> str:
    return (
        f"The same piece of work lost its worker {times} times, the last because {why}: give workers more memory or a "
        "smaller batch, or run without them to see the error itself."
    )
