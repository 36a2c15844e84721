"""A bar with rate and time left on a terminal; a line a pass elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from finetrace.api.watch import Watch

errors = Console(stderr=True)


class _Rate(ProgressColumn):
    """Units a second so far."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Any) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")


def bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


class Bars(Watch):
    """Shows passes as bars and notes as lines, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._what, self._began = "", 0.0

    def begin(self, what: str, total: int, unit: str = "tokens") -> None:
        self._what, self._began = what, time.monotonic()
        self._bar = bar(unit)
        self._bar.add_task(what, total=total)
        self._bar.start()

    def advance(self, units: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], units)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._began
        errors.print(f"{self._what}: {seconds:.1f} s", markup=False, highlight=False)

    def tell(self, line: str) -> None:
        super().tell(line)
        errors.print(line, markup=False, highlight=False)
