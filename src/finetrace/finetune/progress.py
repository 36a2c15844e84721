"""How long-running work says how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called as (what, done, total, note); `note` is a short figure such as the loss."""


def silent(what: str, done: int, total: int, note: str) -> None:
    """Says nothing."""


def bar(*, width: int = 30) -> Progress:
    """A progress bar on stderr: redrawn on a terminal; elsewhere one line per tenth of the work."""
    started: dict[str, tuple[float, int]] = {}
    terminal = sys.stderr.isatty()

    def show(what: str, done: int, total: int, note: str) -> None:
        began, first = started.setdefault(what, (time.monotonic(), done))
        elapsed = time.monotonic() - began
        left = f"{elapsed / (done - first) * (total - done):.0f} s left" if done > first else "..."
        filled = width * done // max(total, 1)
        line = f"{what:<18} [{'#' * filled}{'.' * (width - filled)}] {done}/{total} {note} {left}"
        if terminal:
            print(f"\r{line:<100}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif done >= total or done % max(total // 10, 1) == 0:
            print(line, file=sys.stderr, flush=True)

    return show
