"""Time, memory and the machine: what makes two figures comparable, and what has to be said beside them."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Work

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TOLD_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)


def interleaved(work: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every arm in every round: A, B, C, A, B, C, ... after one call of each that is not counted.

    CPU time of one thread, so that other processes move it little; arms side by side, so that what does move hits all.
    """
    for call in work.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            gc.collect()
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return seconds


def paired(peer: list[float], ours: list[float]) -> dict[str, float]:
    """Peer's time over ours, round by round: above 1, ours is faster."""
    ratios = [p / o for p, o in zip(peer, ours, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def peak(case: Case, name: str) -> dict[str, float | None]:
    """Megabytes that an arm adds to this process, which should be a fresh one: held afterwards, and at its peak.

    The arm runs once before, so that libraries and compiled code are not counted. None where /proc cannot tell.
    """
    arm = {**case.arms, **case.longer}[name]
    work = arm.open()
    work()
    if case.memory_of == "open":
        del work
        work = None
    _trim()
    if not _reset():
        return {"held": None, "peak": None}
    before = _status("VmRSS")
    if work is None:
        work = arm.open()
    work()
    highest = _status("VmHWM")
    _trim()
    return {"held": round(_status("VmRSS") - before, 1), "peak": round(highest - before, 1)}


def _trim() -> None:
    """Freed memory goes back to the system: otherwise a peak of 0 means that the allocator used it again."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _reset() -> bool:
    """Sets the process's peak memory to its present memory, where the kernel lets it."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _STATUS.is_file()


def _status(field: str) -> float:
    """Megabytes (10^6 bytes)."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    found = next(line for line in lines if line.startswith(f"{field}:"))
    return int(found.split()[1]) * 1024 / 1e6


def machine() -> dict[str, Any]:
    """What moves the figures. No name of the machine or of anything on it."""
    flags: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        words = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
        flags = [flag for flag in _TOLD_FLAGS if flag in words]
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": flags,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
    }


def load() -> float | None:
    """Processes that wanted to run in the last minute, this one included."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
