"""From settings to a training, and what comes after it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.api.names import check_source, is_bundled, resolve
from finetrace.api.train.rows import TrainingRows, as_chat, check_data
from finetrace.config import gather
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.finetune.recipe import TrainRecipe

if TYPE_CHECKING:
    from finetrace.finetune.progress import Progress
    from finetrace.finetune.trainer import Trained

__all__ = ["adapter_folder", "audit_command", "draw", "plan", "run"]


def plan(
    words: Sequence[str], *, out: Path | None = None, config_dir: Path | None = None, own_rows: bool = False
) -> TrainRecipe:
    """The recipe that `recipe=NAME` and `key=value` say. Raises ConfigErrors with all that can be seen to be wrong
    without loading anything. own_rows: the rows come from elsewhere, so none need be named."""
    recipe, problems = gather(words, config_dir)
    if recipe is not None:
        checks = [lambda: check_source("base", recipe.model)] if recipe.model.strip() else []
        checks += [] if own_rows else [lambda: check_data(recipe)]
        for check in checks:
            try:
                check()
            except BadInput as error:
                problems.append(str(error))
    if out is not None and out.exists() and not out.is_dir():
        problems.append(f"--out {out} is a file; name a folder.")
    if problems or recipe is None:
        raise ConfigErrors(dict.fromkeys(problems))
    return recipe


def adapter_folder(recipe: TrainRecipe, out: Path) -> Path:
    """Where the trained weights land: `out/adapter`, or `out/model` where every weight is trained."""
    return out / ("adapter" if recipe.kind == "lora" else "model")


def run(
    recipe: TrainRecipe,
    rows: TrainingRows,
    out: Path,
    *,
    reason: str | None = None,
    resume: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
    safety: Path | None = None,
) -> Trained:
    """Trains, with the probe and the drift that the recipe asks for; a training that `out` holds goes on.

    safety: chats that end with the base's own refusals, for the probe; the bundled world brings its own.
    """
    from finetrace.finetune.trainer import train

    folder = adapter_folder(recipe, out)
    return train(
        recipe,
        rows.rows,
        folder,
        base=resolve(recipe.model),
        callbacks=[*_probe(recipe, rows, out, safety), *_drift(recipe, out)],
        progress=progress,
        resume=resume,
        reason=reason or rows.reason,
        device=device,
    )


def _probe(recipe: TrainRecipe, rows: TrainingRows, out: Path, safety: Path | None) -> list[Any]:
    """Refusal and task loss on the way, if the recipe asks for them. The task's rows are some of those trained on."""
    if not recipe.probe.every:
        return []
    from finetrace.data import read_rows
    from finetrace.finetune.probe import SafetyProbe

    refusals: Sequence[Any] = ()
    if safety is not None:
        refusals = read_rows(safety, convert=as_chat)[: recipe.probe.rows]
    elif is_bundled(recipe.model):
        from finetrace.organisms.calibration import calibration

        refusals = calibration("safety", recipe.probe.rows, recipe.train.seed)
    task = rows.rows[: recipe.probe.rows]
    return [SafetyProbe(refusals, task, every=recipe.probe.every, out=out, max_tokens=recipe.data.max_tokens)]


def _drift(recipe: TrainRecipe, out: Path) -> list[Any]:
    """The drift of every trained matrix as a whole; that of groups of weights is what `finetrace drift` measures."""
    if not recipe.drift.every:
        return []
    from finetrace.finetune.drift import DriftTracker

    return [DriftTracker({}, every=recipe.drift.every, out=out)]


def draw(done: Trained, out: Path) -> list[Path]:
    """The loss, and what the probe measured, as pages in `out/figures`; returns their paths."""
    from finetrace.core.page import Figure
    from finetrace.drawing.papers import write_figures
    from finetrace.finetune.page import page

    blocks = page(done.folder, probes=out).blocks
    return write_figures(out / "figures", [block for block in blocks if isinstance(block, Figure)])


def audit_command(recipe: TrainRecipe, out: Path) -> str:
    """What to type to learn what the training did."""
    words = [
        "finetrace",
        "audit",
        recipe.model,
        str(adapter_folder(recipe, out)),
        "--out",
        str(out / "audit"),
    ]
    words += ["--revision", recipe.revision] if recipe.revision else []
    return shlex.join(words)
