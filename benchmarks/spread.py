"""How much faster two workers of a local Ray read a corpus than one: `python -m benchmarks.spread`.

Each arm opens its workers first; then one pass is timed, three times. On a machine that does other work the wall clock says
little, so the workers' own CPU seconds stand beside it: what spreading costs is how much more of them two workers take.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import models
from benchmarks.case import PRESETS, Preset
from finetrace.api.calibration import Sets
from finetrace.api.maker import Opened
from finetrace.api.plan import contrasts, items, jobs
from finetrace.api.request import Request, check
from finetrace.api.spread import Crew, Made, Recipe, recipe_for
from finetrace.core.shelf import Shelf
from finetrace.data import build_corpus, read_rows
from finetrace.engine import Shape, run_pass
from finetrace.engine.ray_pool import Station
from finetrace.engine.shape import Workers
from finetrace.models import open_pair

_SETS: Sets = {}
_CPU = "cpu seconds "
PASSES = 3


@dataclass(frozen=True)
class Clocked(Recipe):
    """As it is, and each task says how many CPU seconds its worker took for it."""

    def __call__(self) -> Station:
        station = super().__call__()

        def work(task: Any) -> Made:
            began = time.process_time()
            made = station.work(task)
            return replace(made, lines=(*made.lines, f"{_CPU}{time.process_time() - began}"))

        return replace(station, work=work)


def measure(preset: Preset, counts: list[int], shards: int) -> dict[str, Any]:
    """Seconds of a pass of `kl` over pair, floor and four nulls, by number of workers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.make(folder, preset, torch.float32)
        found = {str(count): _arm(preset, folder, count, shards) for count in counts}
    first, last = found[str(counts[0])], found[str(counts[-1])]
    ratios = {key: round(first[key] / last[key], 2) for key in ("wall", "cpu")}
    return {"seconds": found, "ratio": ratios, "passes": PASSES, "shards": shards}


def _arm(preset: Preset, folder: Path, count: int, shards: int) -> dict[str, float]:
    request = _request(preset, folder, count, shards)
    chosen = check(request)
    pair = open_pair(
        request.base, request.tuned, nulls={Path(p).name: p for p in request.nulls}, device="cpu"
    ).load()
    corpus = build_corpus(read_rows(request.data), pair.tokenizer)
    opened = Opened(pair, {}, corpus, _SETS, None)
    made = recipe_for(request, chosen, opened, request.shelf)
    lines: list[str] = []
    with Crew(Clocked(**vars(made)), Workers(count=count), lines.append) as crew:
        runs = [_pass(request, chosen, opened, crew, lines, folder / f"{count}-{n}") for n in _passes()]
    return {key: round(median(one[key] for one in runs[1:]), 3) for key in runs[0]}


def _passes() -> Iterator[int]:
    """The first one opens the workers and is not counted."""
    return iter(range(PASSES + 1))


def _request(preset: Preset, folder: Path, count: int, shards: int) -> Request:
    rows = models.texts(preset, shards)
    tokens = preset.texts * preset.length
    return Request(
        base=str(folder / "base"),
        tuned=str(folder / "tuned"),
        nulls=tuple(str(folder / f"null_{n}") for n in range(models.NULLS)),
        data=rows,
        methods=("kl",),
        shape=Shape(batch_size=preset.batch, shard_tokens=tokens),
        out=folder / f"out-{count}",
    )


def _pass(
    request: Request, chosen: Any, opened: Opened, crew: Crew, lines: list[str], root: Path
) -> dict[str, float]:
    pair, corpus = opened.pair, opened.corpus
    wanted = items(request, pair, corpus, chosen, contrasts(pair), _SETS)
    lines.clear()
    began = time.perf_counter()
    run_pass(pair, corpus, jobs(wanted, Shelf(root), request, pair, corpus), shape=request.shape, spread=crew)
    wall = time.perf_counter() - began
    cpu = sum(float(line.removeprefix(_CPU)) for line in lines if line.startswith(_CPU))
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shards", type=int, default=8)
    asked = parser.parse_args()
    print(json.dumps(measure(PRESETS[asked.preset], asked.workers, asked.shards), indent=1))


if __name__ == "__main__":
    main()
