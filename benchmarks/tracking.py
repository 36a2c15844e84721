"""What tracking adds to a training step: the same steps with and without `DriftTracker`, in turn, in CPU time.

    python -m benchmarks.tracking [--rounds 20]

On the tiny world's base and seed 003's recipe, with all groups and controls of `finetrace drift`, measured at every step.
The target is 2% for L2 and relative drift; inner products (for 1 - cosine) are timed beside.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from finetrace.api.drift import plan, run
from finetrace.api.drift.store import load_groups
from finetrace.data.examples import make_examples
from finetrace.finetune.batches import Collator
from finetrace.finetune.drift import DriftTracker
from finetrace.finetune.model import target_losses, trainable
from finetrace.models.source import resolve
from finetrace.models.tokens import load_tokenizer

TARGET = 0.02
_WARM = 3


def measure(rounds: int) -> dict[str, Any]:
    """CPU seconds of a step and of a measurement, one thread; shares are medians over rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        experiment = plan(out=Path(folder) / "drift", seeds=1)
        for phase in ("scores", "groups"):
            run(experiment, phase, tell=lambda line: None)
        groups = load_groups(experiment.groups)
        if groups is None:
            raise SystemExit("The groups are not whole.")
        source = resolve(experiment.base)
        model = trainable(experiment.recipe, source, torch.device("cpu")).model.train()
        step = _step(model, experiment, load_tokenizer(source.name, source.folder))
        arms = {
            "L2 and relative": DriftTracker(groups.groups, 1, Path(folder) / "l2", dots=False),
            "with 1 - cosine": DriftTracker(groups.groups, 1, Path(folder) / "dots"),
        }
        return _interleaved(model, step, arms, rounds) | {
            "groups": len(groups.groups),
            "places": sum(len(group) for group in groups.groups.values()),
        }


def _step(model: Any, experiment: Any, tokenizer: Any) -> Callable[[], None]:
    """One optimiser step of the recipe, on the rows in turn."""
    recipe = experiment.recipe.train
    examples = make_examples(experiment.rows.rows, tokenizer, max_tokens=experiment.recipe.data.max_tokens)
    collator, optimiser = (
        Collator(tokenizer.pad_token_id, flat=False),
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4),
    )
    place = 0

    def step() -> None:
        nonlocal place
        for _ in range(recipe.accumulate):
            rows = [examples[(place + i) % len(examples)] for i in range(recipe.batch)]
            place += recipe.batch
            target_losses(model, collator(rows), partial=True).mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _interleaved(
    model: Any, step: Callable[[], None], arms: dict[str, DriftTracker], rounds: int
) -> dict[str, Any]:
    args = SimpleNamespace(seed=0, output_dir="")
    state = SimpleNamespace(global_step=0, max_steps=10**9, is_world_process_zero=True)
    for tracker in arms.values():
        tracker.on_train_begin(args, state, None, model=model)
    seconds: dict[str, list[float]] = {"step": [], **{name: [] for name in arms}}
    for number in range(rounds + _WARM):
        state.global_step += 1
        taken = {"step": _timed(step)}
        for name, tracker in arms.items():
            taken[name] = _timed(lambda tracker=tracker: tracker.on_step_end(args, state, None))
        if number >= _WARM:
            for name, value in taken.items():
                seconds[name].append(value)
    found: dict[str, Any] = {"rounds": rounds, "step_ms": round(1e3 * statistics.median(seconds["step"]), 2)}
    for name in arms:
        shares = np.array(seconds[name]) / np.array(seconds["step"])
        found[name] = {
            "ms": round(1e3 * statistics.median(seconds[name]), 3),
            "share": round(float(np.median(shares)), 4),
            "low": round(float(np.quantile(shares, 0.1)), 4),
            "high": round(float(np.quantile(shares, 0.9)), 4),
        }
    return found


def _timed(call: Callable[[], None]) -> float:
    gc.collect()
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    found = measure(parser.parse_args().rounds)
    found["target"] = TARGET
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
