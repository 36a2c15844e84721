"""A sweep's runs as units: those that one pass makes together, in the order that loads least, and who makes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetrace.api.audit import Ready, calibration_sets, make_ready, run_ready
from finetrace.api.request import Chosen
from finetrace.api.run.spec import Spec, spec_for
from finetrace.api.run.stages import STAGES, Done, perform
from finetrace.api.watch import Watch
from finetrace.config.tree import RunConfig
from finetrace.core.errors import FinetraceError
from finetrace.models.keep import Keeper, keep_bases

__all__ = ["Failed", "Job", "Made", "Unit", "Worker", "order"]


@dataclass(frozen=True)
class Job:
    """A run that is to be made. number: its place among those that were typed. apart: as in `perform`."""

    number: int
    config: RunConfig
    words: tuple[str, ...]
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """An error as it goes from one process to another."""

    problem: str
    code: int


@dataclass(frozen=True)
class Made:
    """What a worker made of one job in so many seconds."""

    number: int
    what: Done | Failed
    seconds: float


Unit = tuple[Job, ...]
"""Runs that one pass makes."""


def order(jobs: Sequence[Job]) -> list[Unit]:
    """The jobs as passes, in the order that loads least: base by base, then pair by pair, each where its first was typed.

    Jobs share a pass if nothing but their methods differs, and no method is asked for with other options.
    """
    bases: dict[Any, dict[Any, list[list[Job]]]] = {}
    for job in jobs:
        config = job.config
        base = (config.model, config.infrastructure.device, config.infrastructure.device_map)
        pair = (config.organism.name, config.organism_variant, config.variant)
        units = bases.setdefault(base, {}).setdefault(pair, [])
        room = next((unit for unit in units if _shares(unit, job)), None)
        if room is None:
            units.append([job])
        else:
            room.append(job)
    return [tuple(unit) for pairs in bases.values() for units in pairs.values() for unit in units]


def _shares(unit: Sequence[Job], job: Job) -> bool:
    """Whether the job can be made in the unit's pass."""
    if _bare(unit[0].config) != _bare(job.config) or "diffing" not in STAGES[job.config.pipeline.mode]:
        return False
    asked = {name: dict(options) for one in unit for name, options in one.config.diffing.methods.items()}
    return all(
        asked.get(name, dict(options)) == dict(options)
        for name, options in job.config.diffing.methods.items()
    )


def _bare(config: RunConfig) -> RunConfig:
    return replace(config, diffing=replace(config.diffing, methods={}))


@dataclass
class Worker:
    """Makes units, here or in another process; bases stay in memory from one to the next."""

    command: str
    allow_undecided: bool
    watch: Callable[[], Watch] = Watch
    keeper: Keeper | None = field(default=None, repr=False)

    def __call__(self, unit: Unit) -> list[Made]:
        self.keeper = self.keeper or Keeper()
        began = time.monotonic()
        with keep_bases(self.keeper):
            found = self._together(unit) if len(unit) > 1 else None
            found = found or [self._alone(job) for job in unit]
        seconds = (time.monotonic() - began) / len(unit)
        return [Made(job.number, what, seconds) for job, what in zip(unit, found, strict=True)]

    def close(self) -> None:
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def _alone(self, job: Job, ready: Ready | None = None, notes: Sequence[str] = ()) -> Done | Failed:
        watch = self.watch()
        watch.notes.extend(notes)
        try:
            return perform(
                job.config,
                watch,
                self.command,
                apart=job.apart,
                allow_undecided=self.allow_undecided,
                ready=ready,
            )
        except FinetraceError as error:
            return Failed(str(error), error.exit_code)

    def _together(self, unit: Unit) -> list[Done | Failed] | None:
        """The unit in one pass, each job then told of its own methods; None where one of them stands in the way of all, so
        that each has to be tried by itself (what was made is on the shelf)."""
        watch = self.watch()
        try:
            specs = [spec_for(job.config) for job in unit]
            merged = spec_for(_merged(unit))
            ready = make_ready(merged.request, merged.chosen, watch)
            try:
                run_ready(ready, watch, command=self.command)
                return [
                    self._alone(job, _narrowed(ready, spec), watch.notes)
                    for job, spec in zip(unit, specs, strict=True)
                ]
            finally:
                ready.opened.pair.release()
        except FinetraceError:
            return None


def _merged(unit: Unit) -> RunConfig:
    first = unit[0].config
    methods = {name: options for job in unit for name, options in job.config.diffing.methods.items()}
    return replace(first, diffing=replace(first.diffing, methods=methods))


def _narrowed(ready: Ready, spec: Spec) -> Ready:
    """What is ready for many methods, for those of one run: as if it had been made ready for them alone."""
    request = replace(ready.request, methods=spec.request.methods, options=spec.request.options)
    opened = replace(
        ready.opened,
        sets=calibration_sets(request, spec.chosen),
        written=ready.opened.written if _asks(spec.chosen) else None,
    )
    return Ready(request, spec.chosen, opened, ready.began)


def _asks(methods: Sequence[Chosen]) -> bool:
    return any(chosen.needs.prompts for chosen in methods)
