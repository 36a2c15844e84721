"""What a sweep saves by keeping the base: six fine-tunes of one base opened one after the other, with it kept and without.

    python -m benchmarks.sweep [--preset tinyworld|tiny|tinyllama-L2] [--rounds 5]

CPU time of one thread, both ways in turn, of the loading alone (opening, base, adapter, tokenizer, release); a line of
JSON. The peak is of memory added in a process of its own. Ratios are the single runs' over the sweep's: above 1, the sweep
is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure, models
from benchmarks.case import PRESETS, Arm, Case
from finetrace.models import loading, open_pair
from finetrace.models.keep import keep_bases
from finetrace.organisms import bundled

SIDES = 6


def sources(preset: str, folder: Path) -> tuple[Path, list[Path]]:
    """A base and six fine-tunes of it."""
    if PRESETS[preset].bundled:
        names = [name for name in bundled.names() if name != "merged"][:SIDES]
        return bundled.base_path(), [bundled.organism_path(name) for name in names]
    if not (folder / "base").is_dir():
        models.make(folder, PRESETS[preset], torch.bfloat16)  # as checkpoints mostly are
    made = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    return folder / "base", made[:SIDES]


def arms(preset: str, folder: Path) -> dict[str, Callable[[], object]]:
    base, tuned = sources(preset, folder)

    def single() -> None:
        for one in tuned:
            open_pair(base, one, device="cpu", dtype="float32").load().release()

    def kept() -> None:
        with keep_bases():
            single()

    return {"single": single, "sweep": kept}


def benchmark(preset: str, rounds: int, folder: Path) -> dict[str, Any]:
    work = arms(preset, folder)
    before = measure.load()
    seconds = measure.interleaved(work, rounds)
    return {
        "case": "sweep",
        "preset": preset,
        "rounds": rounds,
        "fine_tunes": [path.name for path in sources(preset, folder)[1]],
        "bases_loaded": {name: _loads(call, sources(preset, folder)[0]) for name, call in work.items()},
        "cpu_seconds": {name: [round(one, 3) for one in found] for name, found in seconds.items()},
        "ratio": measure.paired(seconds["single"], seconds["sweep"]),
        "memory": {name: _memory(preset, folder, name) for name in work},
        "load": [before, measure.load()],
        **measure.machine(),
    }


def _loads(call: Callable[[], object], base: Path) -> int:
    with _counted() as found:
        call()
    return found.count(str(base.resolve()))


@contextmanager
def _counted() -> Iterator[list[str]]:
    """Folders whose weights are read inside."""
    found, real = list[str](), loading.load_model

    def load(source: Any, **options: Any) -> Any:
        found.append(str(source.folder))
        return real(source, **options)

    with mock.patch.object(loading, "load_model", load):
        yield found


def _memory(preset: str, folder: Path, name: str) -> dict[str, float | None]:
    """Megabytes, in a fresh process."""
    words = ["--preset", preset, "--folder", str(folder), "--memory-of", name]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--preset", default="tinyworld", choices=tuple(PRESETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.memory_of:
        made = {
            name: Arm(lambda call=call: call, 0)
            for name, call in arms(asked.preset, Path(asked.folder)).items()
        }
        case = Case("sweep", made, "work", lambda figures: {}, ())
        print(json.dumps(measure.peak(case, asked.memory_of)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(benchmark(asked.preset, asked.rounds, Path(folder))))


if __name__ == "__main__":
    main()
