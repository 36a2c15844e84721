"""`python -m benchmarks.run --case CASE [--preset tiny|tinyworld|tinyllama-L2|long] [--rounds 5]`: one line of JSON.

Cases: kl, pair, pass, methods, six, activations, flat, snip, generate, drift, drift-attention, sae, crosscoder, pca.

CPU time of one thread, arms interleaved, seeds fixed, the first call of each arm left out; peak memory of each arm in a
process of its own. Ratios are the peer's time (that of the case's reference, where it has no peer) over the arm's in the same round: above
1, the arm is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before torch: its threads are made when it is first imported.
os.environ.update(
    OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)

import torch

from benchmarks import (
    activations,
    dictionaries,
    drift_algebra,
    flat,
    generation,
    kl,
    measure,
    methods,
    models,
    pair,
    passes,
    pca,
    six,
    snip,
)
from benchmarks.case import PRESETS, Case

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


_CASES = {
    "pair": pair,
    "pass": passes,
    "methods": methods,
    "six": six,
    "activations": activations,
    "flat": flat,
    "snip": snip,
    "generate": generation,
}
# These make their tensors themselves: no models on disk.
_PLAIN = {
    "kl": kl.case,
    "drift": drift_algebra.case,
    "drift-attention": drift_algebra.attention_case,
    "sae": dictionaries.sae_case,
    "crosscoder": dictionaries.crosscoder_case,
    "pca": pca.case,
}


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    asked = parser.parse_args(arguments)
    if PRESETS[asked.preset].bundled and asked.case == "pair":
        parser.error(
            "the case 'pair' is of random models: the tiny world has none adapted in its upper half only"
        )
    _quiet()
    if asked.memory_of:
        print(json.dumps(measure.peak(_case(asked, Path(asked.folder)), asked.memory_of)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(benchmark(asked, Path(folder))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("--case", required=True, choices=(*_PLAIN, *_CASES))
    parser.add_argument("--preset", default="tiny", choices=tuple(PRESETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(DTYPES))
    parser.add_argument(
        "--arms", help="only these, with commas between; the reference and floor are always among them"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="leave the memory out: no process for each arm"
    )
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def _quiet() -> None:
    """One thread, and nothing beside the line of JSON."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    # peft still asks for an attribute that transformers has renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _case(asked: argparse.Namespace, folder: Path) -> Case:
    preset, dtype = PRESETS[asked.preset], DTYPES[asked.dtype]
    if asked.case in _PLAIN:
        return _PLAIN[asked.case](preset, dtype)
    return _CASES[asked.case].case(preset, dtype, folder)


def benchmark(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that the line says."""
    if asked.case not in _PLAIN:
        models.make(folder, PRESETS[asked.preset], DTYPES[asked.dtype])
    case, before = _case(asked, folder), measure.load()
    names = [
        name
        for name in case.arms
        if not asked.arms or name in {case.reference, "floor", *asked.arms.split(",")}
    ]
    memory = {name: _memory(asked, folder, name, case.environment) for name in names}
    seconds = measure.interleaved({name: case.arms[name].open() for name in names}, asked.rounds)
    figures: dict[str, Any] = {
        "case": case.name,
        "preset": asked.preset,
        "dtype": asked.dtype,
        "rounds": asked.rounds,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "arms": {name: _arm(case, name, seconds, memory[name]) for name in names},
    }
    if "peer_mining" in names:
        figures["to_mining"] = {
            name: measure.paired(seconds["peer_mining"], seconds[name]) for name in names if "mining" in name
        }
    if case.longer and not asked.no_memory:
        figures["longer"] = {name: _memory(asked, folder, name, case.environment) for name in case.longer}
    if case.notes is not None:
        figures["notes"] = case.notes()
    if case.accuracy is not None:
        figures["accuracy"] = case.accuracy()
    figures |= {"load": [before, measure.load()], "machine": measure.machine()}
    return figures | {"goal": case.goal(figures) if {*case.judged} <= {*names} else None}


def _arm(
    case: Case, name: str, seconds: dict[str, list[float]], memory: dict[str, float | None]
) -> dict[str, Any]:
    """seconds: CPU time, median. of_floor: the bare products' time over this arm's. flop, bytes: on paper; memory: MB."""
    arm, median = case.arms[name], statistics.median(seconds[name])
    return {
        "seconds": round(median, 6),
        "ratio": measure.paired(seconds[case.reference], seconds[name]),
        "of_floor": measure.paired(seconds["floor"], seconds[name])["median"],
        "gflop_per_second": round(arm.flop / median / 1e9, 1),
        "flop": arm.flop,
        "bytes": dict(arm.bytes),
        "memory": memory,
    }


def _memory(
    asked: argparse.Namespace, folder: Path, name: str, also: Mapping[str, str]
) -> dict[str, float | None]:
    if asked.no_memory:
        return {"held": None, "peak": None}
    given = ["--case", asked.case, "--preset", asked.preset, "--dtype", asked.dtype, "--folder", str(folder)]
    command = [sys.executable, "-m", "benchmarks.run", *given, "--memory-of", name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **also}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of '{name}' failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
