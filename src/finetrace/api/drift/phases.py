"""The phases, each of which is skipped when what it makes is whole, and goes on where it was otherwise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finetrace.api.drift import store
from finetrace.api.drift.analysis import analyse
from finetrace.api.drift.experiment import Experiment
from finetrace.api.drift.setup import memory_available, require_room
from finetrace.core.errors import BadInput, FinetraceError, unknown
from finetrace.data.examples import make_examples
from finetrace.finetune.checkpoint import whole_folder
from finetrace.finetune.progress import Progress, silent
from finetrace.methods.neuron_drift.grouping import Grouped, Picked, grouped, picked, together
from finetrace.models import open_pair
from finetrace.weights.read import dense_weight, oriented
from finetrace.weights.scores import accumulator_bytes, linear_layers, score_in_parts

__all__ = ["PHASES", "Tell", "base_weights", "run"]

Tell = Callable[[str], object]
PHASES = ("scores", "groups", "train", "analyze")
# Of the memory that is free, what accumulators may take.
_SHARE = 0.5


def run(
    experiment: Experiment, phase: str, *, tell: Tell = print, progress: Progress = silent
) -> Path | None:
    """One phase of `PHASES`, or "all". Returns the report's path where one was written.

    A phase needs what those before it made, and says so if that is not there.
    """
    if phase not in (*PHASES, "all"):
        raise unknown("phase", phase, (*PHASES, "all"))
    report = None
    with _room_told(experiment):
        experiment.out.mkdir(parents=True, exist_ok=True)
        experiment.scratch.mkdir(parents=True, exist_ok=True)
        experiment.record()
        for name in PHASES if phase == "all" else (phase,):
            report = _RUN[name](experiment, tell, progress)
    return report


@contextmanager
def _room_told(experiment: Experiment) -> Iterator[None]:
    """Turns a full disk into an error that says what stays usable."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{experiment.out} or {experiment.scratch} could not be written ({error}): free some space, or name a roomier "
            "folder with --scratch, and run the same again. Finished phases and trainings stay as they are."
        ) from error
    except BadInput:
        raise
    except FinetraceError as error:
        if isinstance(error.__cause__, OSError):
            raise BadInput(str(error)) from error
        raise


def _scores(experiment: Experiment, tell: Tell, progress: Progress) -> None:
    path = experiment.scratch / store.PICKED
    if path.is_file() or store.load_groups(experiment.groups) is not None:
        tell("scores: done already")
        return
    found = _picked(experiment, progress)
    store.save_picked(path, found)
    samples = ", ".join(f"{len(rows)} of {name}" for name, rows in experiment.sets.items())
    tell(f"scores: {len(found.shapes)} matrices, on {samples}; only places were kept, no score")


def _picked(experiment: Experiment, progress: Progress) -> Picked:
    """One pass over each set for every run of layers whose sums fit into memory."""
    pair = open_pair(experiment.base, None, device=experiment.device, revision=experiment.recipe.revision)
    pair.load()
    longest = experiment.recipe.data.max_tokens
    sets = {n: make_examples(rows, pair.tokenizer, max_tokens=longest) for n, rows in experiment.sets.items()}
    pad = pair.tokenizer.pad_token_id
    with pair.open("base") as model:
        parts = _parts(accumulator_bytes(model) * len(sets))

        def passes(name: str) -> Iterator[Any]:
            def advance(done: int, of: int) -> None:
                progress(f"scoring {name}", done, of, "")

            return score_in_parts(
                model,
                sets[name],
                pad=pad if isinstance(pad, int) else 0,
                layer_groups=parts,
                kinds=(experiment.config.score,),
                batch=experiment.recipe.train.batch,
                advance=advance,
            )

        runs = zip(*(passes(name) for name in sets), strict=True)
        return together([picked(dict(zip(sets, scores, strict=True)), experiment.config) for scores in runs])


def _parts(size: int) -> int:
    free = memory_available()
    return 1 if free is None else max(1, -(-size // int(free * _SHARE)))


def _groups(experiment: Experiment, tell: Tell, progress: Progress) -> None:
    if store.load_groups(experiment.groups) is not None:
        tell("groups: done already")
        return
    path = experiment.scratch / store.PICKED
    found = store.load_picked(path)
    if found is None:
        raise BadInput("There are no scores to make groups of: run the phase `scores` first, or `all`.")
    made = grouped(found, base_weights(experiment), experiment.config)
    experiment.groups.mkdir(mode=0o700, exist_ok=True)
    store.save_groups(experiment.groups, made)
    path.unlink()
    primary = made.contrasts[0]
    tell(
        f"groups: {len(made.groups[primary.group]):,} weights in {primary.group}, of which "
        f"{(primary.rate or 0.0):.0%} found a matched control; written to {experiment.groups}"
    )


def base_weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Module -> the base's weight [out, in] of every linear layer in the blocks."""
    pair = open_pair(experiment.base, None, device=experiment.device, revision=experiment.recipe.revision)
    pair.load()
    with pair.open("base") as model:
        layers, _ = linear_layers(model)
        return {name: oriented(one.module, dense_weight(one.module)).detach() for name, one in layers.items()}


def _whole_groups(experiment: Experiment) -> Grouped:
    found = store.load_groups(experiment.groups)
    if found is None:
        raise BadInput(
            f"There are no groups in {experiment.groups}: run the phases `scores` and `groups` first, or `all`."
        )
    return found


def _train(experiment: Experiment, tell: Tell, progress: Progress) -> None:
    found = _whole_groups(experiment)
    require_room(experiment)
    for seed in range(experiment.seeds):
        if experiment.model(seed).is_dir():
            tell(f"train: seed {seed} done already")
            continue
        _train_one(experiment, found, seed, tell, progress)
    shutil.rmtree(experiment.scratch, ignore_errors=True)
    experiment.scratch.mkdir(parents=True)


def _train_one(experiment: Experiment, found: Grouped, seed: int, tell: Tell, progress: Progress) -> None:
    from finetrace.finetune.drift import DriftTracker
    from finetrace.finetune.trainer import train

    recipe, work = experiment.seeded(seed), experiment.work(seed)
    trained = train(
        recipe,
        experiment.rows.rows,
        work,
        base=experiment.base,
        callbacks=[DriftTracker(found.groups, recipe.drift.every, work, seed=seed)],
        progress=lambda what, done, of, note: progress(f"{what} seed {seed}", done, of, note),
        reason=experiment.reason or experiment.rows.reason,
        device=experiment.device,
    )
    if not trained.finished:
        raise KeyboardInterrupt
    _keep(work, experiment.model(seed))
    mean = sum(trained.losses[-5:]) / len(trained.losses[-5:])
    tell(f"train: seed {seed}, {len(trained.losses)} steps, loss {mean:.3f} at the end")


def _keep(work: Path, folder: Path) -> None:
    """Puts a finished training where it stays, whole or not at all; its checkpoints go."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as part:
        for path in sorted(work.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                shutil.copy2(path, part / path.name)
    shutil.rmtree(work, ignore_errors=True)


def _analyze(experiment: Experiment, tell: Tell, progress: Progress) -> Path:
    found = _whole_groups(experiment)
    seeds = [seed for seed in range(experiment.seeds) if experiment.model(seed).is_dir()]
    if not seeds:
        raise BadInput(
            f"There are no fine-tunes in {experiment.models}: run the phase `train` first, or `all`."
        )
    if len(seeds) < experiment.seeds:
        tell(f"analyze: {len(seeds)} of {experiment.seeds} fine-tunes are there; only these are compared")
    path = analyse(experiment, found, seeds, base_weights(experiment))
    tell(f"analyze: {os.path.relpath(path)}")
    return path


_RUN: dict[str, Callable[[Experiment, Tell, Progress], Any]] = {
    "scores": _scores,
    "groups": _groups,
    "train": _train,
    "analyze": _analyze,
}
