"""Many runs, one after the other or over a cluster: those on one base share it in memory, and those of one pair that differ
in their method alone share a pass."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetrace.api.rules import exit_code
from finetrace.api.run.spec import base_dir, folder_of, request_for
from finetrace.api.run.stages import Done, apart
from finetrace.api.run.units import Failed, Job, Made, Unit, Worker, order
from finetrace.api.watch import Watch
from finetrace.config.tree import RunConfig
from finetrace.core.amounts import duration
from finetrace.core.errors import FinetraceError
from finetrace.core.files import write_text

__all__ = ["Ran", "perform_all", "worst_code"]

LOCAL, RAY = "local", "ray"
Runs = Sequence[tuple[RunConfig, tuple[str, ...]]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Ran:
    """What became of one run of a sweep.

    words: as typed. folder: of its report. change, safety: its verdicts, None where nothing was diffed. code: what the run
    alone would have ended with. problem: in words, where it failed. seconds: its share of the pass.
    """

    config: RunConfig
    words: tuple[str, ...]
    folder: Path
    change: str | None
    safety: str | None
    code: int
    problem: str | None
    seconds: float


def perform_all(
    runs: Runs,
    watch: Callable[[], Watch] = Watch,
    command: str = "",
    *,
    allow_undecided: bool = False,
    show: Callable[[Done], None] = lambda done: None,
) -> tuple[Ran, ...]:
    """Makes all runs, and gives back what became of them in the order in which they were typed.

    A run that fails is told at the end; the others stand. watch: made anew for each pass, as its notes go into the reports.
    show: called with each run that is done, when it is.
    """
    differing = apart([said for _, said in runs])
    jobs = [
        Job(number, config, words, differs)
        for number, ((config, words), differs) in enumerate(zip(runs, differing, strict=True))
    ]
    units, pace = order(jobs), _Pace(len(jobs), watch().tell)
    if _spreads(units):
        made = _over_cluster(units, command, allow_undecided, pace.tell)
    else:
        made = _here(units, Worker(command, allow_undecided, watch), pace)
    found: dict[int, Ran] = {}
    try:
        for several in made:
            for one in several:
                found[one.number] = _ran(jobs[one.number], one)
                if isinstance(one.what, Done):
                    show(one.what)
            pace.done([found[one.number] for one in several])
    except KeyboardInterrupt:
        pace.tell(
            f"Stopped: {len(found)} of {len(jobs)} runs are done. The same command goes on from there: what is whole is read "
            "from the shelf, and a pass that was broken off goes on where it was."
        )
        raise
    every = tuple(found[number] for number in range(len(jobs)))
    for one in every:
        if one.problem is not None:
            pace.tell(f"Failed: {' '.join(one.words)}: {one.problem}")
    return every


def worst_code(ran: Iterable[Ran]) -> int:
    """The exit code of them all: what failed counts before what broke a rule, that before what is undecided."""
    codes = {one.code for one in ran}
    return next((code for code in (1, 2, 3, 4) if code in codes), 0)


def _ran(job: Job, made: Made) -> Ran:
    folder, what = folder_of(job.config, job.apart), made.what
    if isinstance(what, Failed):
        return Ran(job.config, job.words, folder, None, None, what.code, what.problem, made.seconds)
    findings = what.findings
    change, safety = (None, None) if findings is None else (findings.change, findings.safety)
    code = 0 if findings is None else exit_code(findings.rules)
    return Ran(job.config, job.words, folder, change, safety, code, None, made.seconds)


@dataclass
class _Pace:
    """Tells how a sweep goes on: which run, how many a minute, how much time is left."""

    total: int
    tell: Tell
    began: float = field(default_factory=time.monotonic)
    ended: int = 0
    failed: int = 0

    def begin(self, unit: Unit) -> None:
        numbers = f"{self.ended + 1}" if len(unit) == 1 else f"{self.ended + 1} to {self.ended + len(unit)}"
        together = ", in one pass" if len(unit) > 1 else ""
        said = "; ".join(" ".join(job.words) for job in unit)
        self.tell(f"[{numbers} of {self.total}{together}] {said}")

    def done(self, ran: Sequence[Ran]) -> None:
        self.ended += len(ran)
        self.failed += sum(one.problem is not None for one in ran)
        if self.ended == self.total:
            return
        each = (time.monotonic() - self.began) / self.ended
        wrong = f" ({self.failed} failed)" if self.failed else ""
        rate = f"{60 / each:,.1f} a minute" if each else "at once"
        left = duration(each * (self.total - self.ended))
        self.tell(f"{self.ended} of {self.total} runs done{wrong}, {rate}, about {left} left")


def _here(units: Sequence[Unit], worker: Worker, pace: _Pace) -> Iterator[list[Made]]:
    try:
        for unit in units:
            pace.begin(unit)
            yield worker(unit)
    finally:
        worker.close()


def _spreads(units: Sequence[Unit]) -> bool:
    """Whether units go to the workers of a cluster; one alone, or some that are to run here, spread their shards instead."""
    return len(units) > 1 and all(job.config.infrastructure.kind == RAY for unit in units for job in unit)


@dataclass
class _Elsewhere:
    """Makes units in a worker's process, in the folder of the sweep's own process.

    threads: torch's, which move the last bit. stamp: a file that lies in the folder of the results while the sweep goes on.
    """

    worker: Worker
    folder: Path
    threads: int
    stamp: str

    def __call__(self, unit: Unit) -> list[Made]:
        import torch

        torch.set_num_threads(self.threads)
        if self.folder.is_dir():
            os.chdir(self.folder)
        root = base_dir(unit[0].config)
        if not (root / self.stamp).is_file():
            problem = (
                f"A worker on {platform.node()} does not see the folder of the results, {root}: name one on a disk that all "
                "nodes share (out=FOLDER), or run the sweep without infrastructure=ray."
            )
            return [Made(job.number, Failed(problem, code=2), 0.0) for job in unit]
        return self.worker(unit)


def _over_cluster(
    units: Sequence[Unit], command: str, allow_undecided: bool, tell: Tell
) -> Iterator[list[Made]]:
    """Each unit as a whole in some worker, which does not spread its shards again."""
    import torch

    from finetrace.engine.ray_pool import map_jobs
    from finetrace.models.loading import pick_device

    first = units[0][0].config
    workers = request_for(first).workers
    if workers is None:
        raise ValueError("a sweep that is not for a cluster")
    if workers.gpus is None:
        cuda = pick_device(first.infrastructure.device).type == "cuda"
        workers = replace(workers, gpus=1 if cuda else 0)
    away = [tuple(replace(job, config=_local(job.config)) for job in unit) for unit in units]
    elsewhere = _Elsewhere(
        Worker(command, allow_undecided),
        Path.cwd(),
        torch.get_num_threads(),
        f".sweep-{secrets.token_hex(8)}",
    )
    stamps = {base_dir(job.config) / elsewhere.stamp for unit in away for job in unit}
    for stamp in stamps:
        write_text(stamp, "")
    try:
        for index, made in map_jobs(elsewhere, away, workers, tell):
            yield _returned(units[index], made)
    finally:
        for stamp in stamps:
            stamp.unlink(missing_ok=True)


def _local(config: RunConfig) -> RunConfig:
    return replace(config, infrastructure=replace(config.infrastructure, kind=LOCAL))


def _returned(unit: Unit, made: list[Made] | Exception) -> list[Made]:
    """What a worker made; an error that a user can mend is that of the unit's runs, any other is a bug."""
    if isinstance(made, FinetraceError):
        return [Made(job.number, Failed(str(made), made.exit_code), 0.0) for job in unit]
    if isinstance(made, Exception):
        raise made
    return made
