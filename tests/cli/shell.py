"""A verb run as from the shell, in this process."""

from __future__ import annotations

import sys

import pytest

from finetrace.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `finetrace *words`."""
    monkeypatch.setattr(sys, "argv", ["finetrace", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)
