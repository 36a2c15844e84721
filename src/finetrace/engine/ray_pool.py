"""Workers as Ray actors, on a Ray that is started here or on a cluster that is already there. Ray is imported nowhere else."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.core.errors import BadInput, FinetraceError, MissingExtra
from finetrace.engine.shape import Workers
from finetrace.engine.spread import Event, Fit, Place, Pool, Tell, accept_all

if TYPE_CHECKING:
    from finetrace.engine.journal import Environment

__all__ = ["Station", "cluster", "map_jobs", "open_pool"]

Work = Callable[[Any], Any]
"""What a worker does with a task."""

_STORE = 512 * 2**20
"""Bytes of shared memory for a Ray of our own: the corpus once, and states on their way; more goes to disk."""


@dataclass(frozen=True)
class Station:
    """What a worker has opened. device, environment: as in `Place`."""

    work: Work
    device: str = "CPU"
    environment: Environment | None = None


@contextmanager
def cluster(workers: Workers) -> Iterator[None]:
    """Inside, this process is joined to Ray: one that was joined before, the one at `workers.address`, or one of its own
    that stops at the end."""
    if "ray" in sys.modules and _ray().is_initialized():
        yield
    elif workers.address is not None:
        _join(workers.address)
        try:
            yield
        finally:
            _ray().shutdown()
    else:
        with _own_cluster(workers):
            yield


@contextmanager
def _own_cluster(workers: Workers) -> Iterator[None]:
    # Ray's own default is a folder that all users of a machine share; a socket's path is at most 107 characters long.
    short = "/tmp" if Path("/tmp").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="ft-", dir=short, ignore_cleanup_errors=True) as folder,
        _quiet(_own_environment()),
    ):
        ray = _ray()
        try:
            ray.init(
                address="local",
                num_cpus=max(_cores(), ceil((workers.count or 1) * workers.cpus)),
                num_gpus=0 if workers.gpus == 0 else None,
                include_dashboard=False,
                configure_logging=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_STORE,
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()


def open_pool(
    make: Callable[[], Station],
    workers: Workers,
    *,
    gpus: float = 0,
    fit: Fit = accept_all,
    tell: Tell = lambda line: None,
) -> Pool:
    """Workers that each call `make()` once and keep what it gives; call it inside `cluster`, and close it there.

    make: picklable. gpus: of each worker where `workers` does not say.
    """
    each = workers.gpus if workers.gpus is not None else gpus
    size = workers.count or _room(workers.cpus, each)
    if size < 1:
        raise BadInput(
            f"The Ray cluster has no room for a worker with {workers.cpus:g} CPUs and {each:g} GPUs: ask for less "
            "(infrastructure.ray.cpus, infrastructure.ray.gpus), or wait until nodes have joined."
        )
    return Pool(_RayTeam(make, workers.cpus, each), size, workers.retries, tell, fit)


def map_jobs(
    function: Callable[[Any], Any], items: Sequence[Any], workers: Workers, tell: Tell = lambda line: None
) -> Iterator[tuple[int, Any]]:
    """(index, `function(item)` or the error that it raised), as they come; whole jobs, each in a worker of its own choice.

    function, items and results: picklable. A job whose worker died is done again, at most `workers.retries` times.
    """
    if not items:
        return
    with cluster(workers):
        pool = open_pool(partial(Station, function), workers, tell=tell)
        try:
            yield from pool.outcomes(items)
        finally:
            pool.close()


def _ray() -> Any:
    if find_spec("ray") is None:
        raise MissingExtra("Ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    import ray

    return ray


def _join(address: str) -> None:
    ray = _ray()
    try:
        ray.init(
            address=address,
            configure_logging=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"The Ray cluster at '{address}' cannot be joined: {reason} (start one with `ray start --head`, or leave the "
            "address out to start Ray here)."
        ) from None


@cache
def _token() -> str:
    return secrets.token_hex(32)


def _own_environment() -> Mapping[str, str]:
    """Ray listens on every interface of the machine: without a token anybody who reaches it could run code as this user.
    As a variable it is written nowhere."""
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if "RAY_AUTH_MODE" in os.environ:
        return own
    # Read once, when Ray is imported; where somebody else did that, a Ray that can asks for a token by itself.
    early = _token.cache_info().currsize > 0 or "ray" not in sys.modules
    return own | ({"RAY_AUTH_MODE": "token"} if early else {}) | {"RAY_AUTH_TOKEN": _token()}


@contextmanager
def _quiet(wanted: Mapping[str, str]) -> Iterator[None]:
    """Inside, these variables are set, and Ray's log holds errors alone; after it, all is as it was."""
    names, log = (*wanted, "RAY_AUTH_MODE"), logging.getLogger("ray")
    before, level = {name: os.environ.get(name) for name in names}, log.level
    os.environ.update(wanted)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _cores() -> int:
    with suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _room(cpus: float, gpus: float) -> int:
    """Workers that fit on the cluster's nodes at once."""
    return sum(
        min(
            int(node["Resources"].get(name, 0) / each)
            for name, each in (("CPU", cpus), ("GPU", gpus))
            if each > 0
        )
        for node in _ray().nodes()
        if node["Alive"]
    )


@dataclass(frozen=True)
class _Failed:
    """An error of ours on its way back: Ray would wrap it in a traceback, and not every error survives a pickle."""

    kind: type[FinetraceError]
    message: str

    def error(self) -> FinetraceError:
        # Not called: some kinds write their message themselves, from other arguments.
        return self.kind.__new__(self.kind, self.message)


class _Worker:
    """The actor."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def open(self, make: Callable[[], Station]) -> Place | _Failed:
        try:
            station = make()
        except FinetraceError as error:
            return _Failed(type(error), str(error))
        self._work = station.work
        return Place(platform.node(), os.getpid(), station.device, station.environment)

    def do(self, task: Any) -> Any:
        if self._work is None:
            raise RuntimeError("a worker was given a task before it was open")
        try:
            return self._work(task)
        except FinetraceError as error:
            return _Failed(type(error), str(error))


class _RayTeam:
    """Actors by number. What each is doing is one pending reference: its opening or its task."""

    def __init__(self, make: Callable[[], Station], cpus: float, gpus: float) -> None:
        self._ray = _ray()
        self._make = self._ray.put(make)
        # No restarts by Ray: a new actor would not have opened anything.
        self._kind = self._ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, str]] = {}
        self._hired = 0

    def hire(self) -> int:
        self._hired += 1
        actor = self._kind.remote()
        self._actors[self._hired] = actor
        self._pending[actor.open.remote(self._make)] = (self._hired, "open")
        return self._hired

    def give(self, worker: int, task: Any) -> None:
        self._pending[self._actors[worker].do.remote(task)] = (worker, "done")

    def next(self) -> Event:
        (ready,), _ = self._ray.wait(list(self._pending), num_returns=1)
        worker, kind = self._pending.pop(ready)
        try:
            value = self._ray.get(ready)
        except (
            self._ray.exceptions.RayTaskError
        ) as error:  # a bug in the work itself, with the worker's traceback
            return Event(worker, "failed", error)
        except self._ray.exceptions.RayError as error:
            return Event(worker, "lost", _why(error))
        if isinstance(value, _Failed):
            return Event(worker, "failed", value.error())
        return Event(worker, "open" if kind == "open" else "done", value)

    def dismiss(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        self._pending = {ref: held for ref, held in self._pending.items() if held[0] != worker}
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        for worker in list(self._actors):
            self.dismiss(worker)


def _why(error: Exception) -> str:
    """A few words: Ray's own messages run over many lines."""
    return _REASONS.get(type(error).__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


_REASONS = {
    "ActorDiedError": "its process ended: killed, crashed or out of memory",
    "ActorUnavailableError": "it cannot be reached",
    "NodeDiedError": "its node went away",
    "OutOfMemoryError": "its node ran out of memory",
    "WorkerCrashedError": "its process ended: killed, crashed or out of memory",
}
