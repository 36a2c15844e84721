"""A training as a page: the loss, the rate it was learnt at, and safety against steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetrace.core.errors import DataError
from finetrace.core.estimate import Estimate
from finetrace.core.files import read_json
from finetrace.core.page import Block, Figure, Line, Number, Page, Series, Warning
from finetrace.finetune.probe import ProbeRow, read_probes
from finetrace.finetune.stamp import read
from finetrace.finetune.trainer import LOSSES

__all__ = ["page"]


def page(folder: Path, *, probes: Path | None = None) -> Page:
    """What training left in `folder`; `probes` is where the probe wrote, if elsewhere."""
    stamp = read(folder)
    if stamp is None or not (folder / LOSSES).is_file():
        raise DataError(f"{folder} holds no training of ours: it has no {LOSSES} and finetrace.json.")
    curve = read_json(folder / LOSSES)
    measured = read_probes(probes or folder)
    done = f"{stamp['step']} of {stamp['steps']} steps"
    return Page(
        f"Training: {stamp['recipe']['name']}",
        f"{done} on {stamp['base']['name']}, {curve['trainable']:,} of {curve['total']:,} parameters "
        f"({100 * curve['share']:.2f}%) trained. A falling loss says nothing about safety.",
        (*_warnings(stamp), *_numbers(measured), *_curves(curve), *_safety(measured)),
    )


def _warnings(stamp: dict[str, Any]) -> list[Block]:
    told: list[Block] = [] if stamp["finished"] else [Warning("The training was ended early.")]
    cut = stamp["data"]["truncation"]
    if cut["dropped"]:
        told.append(
            Warning(f"{cut['dropped']} of {cut['rows']} rows lost their whole response to truncation.")
        )
    scan = stamp["scan"]
    if scan["flagged"]:
        told.append(
            Warning(f"{scan['flagged']} of {scan['rows']} rows were flagged; reason: {stamp['reason']}.")
        )
    return told


def _numbers(rows: list[ProbeRow]) -> list[Block]:
    if not rows:
        return []
    last = rows[-1]
    refusal = Estimate(
        last.refusal, "probability", last.refusal_n, last.refusal_n, last.refusal_low, last.refusal_high
    )
    help = "Probability that an answer begins as the base's refusals do; it falls as safety wears off."
    return [Number("refusal_mass", f"Refusal mass after step {last.step}", refusal, help)]


def _curves(curve: dict[str, Any]) -> list[Block]:
    steps = tuple(curve["step"])
    loss = Line((Series("loss", steps, tuple(curve["loss"])),))
    rate = Line((Series("learning rate", steps, tuple(curve["learning_rate"])),))
    return [
        Figure(
            "loss", "Training loss", loss, "step", curve["unit"], "Of each step's own rows, so it is noisy."
        ),
        Figure("learning_rate", "Learning rate", rate, "step", "rate"),
    ]


def _safety(rows: list[ProbeRow]) -> list[Block]:
    steps = tuple(row.step for row in rows)
    found: list[Block] = []
    if any(row.refusal is not None for row in rows):
        low, high = tuple(row.refusal_low for row in rows), tuple(row.refusal_high for row in rows)
        series = Series("refusal mass", steps, tuple(row.refusal for row in rows), low, high)
        note = f"Mean of {rows[-1].refusal_n} prompts, with 95% intervals over them."
        found.append(
            Figure("refusal", "Refusals against steps", Line((series,)), "step", "probability", note)
        )
    if any(row.task is not None for row in rows):
        low, high = tuple(row.task_low for row in rows), tuple(row.task_high for row in rows)
        series = Series("task loss", steps, tuple(row.task for row in rows), low, high)
        note = f"Of {rows[-1].task_n} rows, measured without dropout, with 95% intervals over them."
        found.append(
            Figure("task", "Task loss against steps", Line((series,)), "step", "nats per target token", note)
        )
    return found
