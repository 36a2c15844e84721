"""Drift on the way: a callback for any transformers or TRL trainer that measures how far groups of weights moved.

Of an adapter it is computed from its factors, against those it began with; nothing is merged and nothing reloaded. Of a
full fine-tune, from a copy of the initial weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from finetrace.core.errors import BadInput, ModelError
from finetrace.core.files import whole_file, write_text
from finetrace.core.result import Columns
from finetrace.finetune.moving import ALL, Followed, Meter, Moving, follow, moving
from finetrace.weights.groups import Group

__all__ = ["ALL", "DRIFT", "DriftTracker", "read_drift"]

DRIFT = "drift.jsonl"
INITIAL = "drift_initial.safetensors"
_SCHEMA = 1


@dataclass(frozen=True)
class _Series:
    """What every measurement has one figure of, in order: a group in a matrix. Sums of squared weights as they began."""

    group: tuple[str, ...]
    module: tuple[str, ...]
    layer: tuple[int, ...]
    n: tuple[int, ...]
    weight_square: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.group)


class DriftTracker(TrainerCallback):
    """Writes `drift.jsonl` into `out` (the trainer's output folder unless given): every `every` steps and after the last.

    groups: name -> Group; places in matrices that are not trained are left out. The whole of every trained matrix is
    tracked as the group "all". dots: with inner products of weight and change, which 1 - cosine needs; without them a
    measurement costs half. whole: of a full fine-tune, keep a copy of all trained matrices for the group "all"; without
    it only the groups' own weights are kept. seed: written in the log; the trainer's own unless given.

    A resumed training goes on in the same file: steps that it does again are measured again, and none is there twice.
    Weights must lie whole on one device, as they do without FSDP or DeepSpeed's third stage.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        every: int = 1,
        out: str | Path | None = None,
        *,
        dots: bool = True,
        whole: bool = True,
        seed: int | None = None,
    ) -> None:
        if every < 1:
            raise BadInput(f"Drift is measured every 1 or more steps, not every {every}.")
        if ALL in groups:
            raise BadInput(f"'{ALL}' is the group of whole matrices: give yours another name.")
        self._groups, self._every, self._dots, self._whole = dict(groups), every, dots, whole
        self._path = None if out is None else Path(out) / DRIFT
        self._seed = seed
        self._last = 0
        self._followed: list[Followed] = []
        self._meter: Meter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._path = self._path or Path(args.output_dir) / DRIFT
        self._last = 0
        if not state.is_world_process_zero:
            return
        with _writing(self._path):
            self._begin(kwargs["model"], int(state.global_step), self._seed_of(args))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            self._measure(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state)
        if state.is_world_process_zero and self._path and state.global_step >= state.max_steps:
            (self._path.parent / INITIAL).unlink(missing_ok=True)

    def _seed_of(self, args: Any) -> int:
        return int(args.seed) if self._seed is None else self._seed

    def _begin(self, model: Any, step: int, seed: int) -> None:
        path = _given(self._path)
        initial = path.parent / INITIAL
        found = moving(model, self._groups, whole=self._whole)
        if not found:
            raise BadInput("No matrix of this model is trained: there is no drift to track.")
        old, lines = _lines(path) if step else (None, [])
        if step:
            _restore(found, initial, wanted=old is not None and old["kept"])
        kept = _keep(found, initial) if not step else initial.is_file()
        self._followed = [follow(one, self._groups) for one in found]
        self._meter = Meter(self._followed, dots=self._dots)
        head = _head(seed, kept, self._series())
        if old is not None and _differs(old, head):
            raise BadInput(
                f"{path} is the log of other groups, another seed or other weights: choose another folder, or begin anew."
            )
        done = [line for line in lines if line["step"] <= step]
        self._last = done[-1]["step"] if done else 0
        write_text(path, "".join(_line(row) for row in (head, *done)))

    def _series(self) -> _Series:
        rows = [
            (name, part.one.module, _layer(part.one.module), n, square)
            for part in self._followed
            for name, n, square in zip(part.names, part.n, part.weight_square, strict=True)
        ]
        return _Series(*(tuple(column) for column in zip(*rows, strict=True)))

    def _measure(self, state: Any) -> None:
        if self._meter is None or state.global_step <= self._last or self._path is None:
            return
        square, dot = self._meter.read().cpu().numpy()
        if not np.isfinite(square).all():
            raise ModelError(f"Training diverged: at step {state.global_step} some weights are not finite.")
        row = {
            "step": int(state.global_step),
            "total": _total(self._followed, square),
            "square": square.tolist(),
            "dot": dot.tolist() if self._dots else None,
        }
        with _writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))
        self._last = int(state.global_step)


def read_drift(folder: str | Path) -> Columns:
    """The log in a folder (or the file itself), one row a step, group and matrix: seed, step, group, module, layer, n,
    square, weight_square, dot (NaN where it was not measured), and total, the norm of the step's whole change (NaN where
    whole matrices were not tracked). Sums in the units of the weights, squared. A line that a crash cut short is left out.
    """
    path = Path(folder)
    path = path / DRIFT if path.is_dir() else path
    head, lines = _lines(path)
    if head is None:
        raise BadInput(f"{path} is no drift log: `DriftTracker` writes one.")
    series, steps = head["series"], [line["step"] for line in lines]
    width, count = len(series["group"]), len(lines)
    none = [math.nan] * width

    def repeated(name: str, kind: Any) -> np.ndarray:
        return np.tile(np.asarray(series[name], kind), count)

    def measured(name: str) -> np.ndarray:
        return np.array([none if line[name] is None else line[name] for line in lines], np.float64).reshape(
            -1
        )

    totals = [math.nan if line["total"] is None else line["total"] for line in lines]
    return Columns(
        {
            "seed": np.full(width * count, head["seed"], np.int64),
            "step": np.repeat(np.asarray(steps, np.int64), width),
            "group": list(series["group"]) * count,
            "module": list(series["module"]) * count,
            "layer": repeated("layer", np.int64),
            "n": repeated("n", np.int64),
            "square": measured("square"),
            "weight_square": repeated("weight_square", np.float64),
            "dot": measured("dot"),
            "total": np.repeat(np.asarray(totals, np.float64), width),
        }
    )


def _total(followed: Sequence[Followed], square: np.ndarray) -> float | None:
    """The norm of the whole change over all trained matrices; None where they are not tracked whole."""
    if not all(part.one.whole for part in followed):
        return None
    firsts = np.cumsum([0, *(len(part.names) for part in followed)])[:-1]
    return math.sqrt(math.fsum(square[firsts].tolist()))


def _layer(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def _head(seed: int, kept: bool, series: _Series) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "seed": seed,
        "kept": kept,
        "series": {
            "group": list(series.group),
            "module": list(series.module),
            "layer": list(series.layer),
            "n": list(series.n),
            "weight_square": list(series.weight_square),
        },
    }


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two heads are of different trainings; sums may differ in their last digits."""
    one, two = (head["series"] for head in (old, new))
    exact = ("group", "module", "layer", "n")
    if old["seed"] != new["seed"] or any(one[name] != two[name] for name in exact):
        return True
    return not np.allclose(one["weight_square"], two["weight_square"], rtol=1e-6, atol=0)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"


def _lines(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Head and measurements of a log, each step once; (None, []) where it is none."""
    if not path.is_file():
        return None, []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        head, *rows = [json.loads(line) for line in whole]
    except ValueError:
        return None, []
    if not isinstance(head, dict) or head.get("schema") != _SCHEMA:
        return None, []
    by_step = {row["step"]: row for row in rows}
    return head, [by_step[step] for step in sorted(by_step)]


def _keep(found: Sequence[Moving], path: Path) -> bool:
    """Writes what a resumed training could not know any more beside the log; whether there is such a thing."""
    from safetensors.torch import save_file

    kept = {key: tensor.contiguous() for one in found for key, tensor in one.kept().items()}
    if not kept:
        path.unlink(missing_ok=True)
        return False
    with whole_file(path, mode=0o600) as temporary:
        save_file(kept, temporary)
    return True


def _restore(found: Sequence[Moving], path: Path, *, wanted: bool) -> None:
    from safetensors.torch import load_file

    saved = load_file(path) if path.is_file() else {}
    lacking = [one.module for one in found if one.must_be_kept and one.module not in saved]
    if lacking or (wanted and not saved):
        raise BadInput(
            f"{path} is gone or of another training. It holds what the weights were at the beginning, so that their drift "
            "cannot be told any more: begin the training anew."
        )
    for one in found:
        one.restore(saved)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a full disk and its like into an error that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"The drift log {path} could not be written ({error}): free some space, then run the same again; it goes on "
            "from the last checkpoint."
        ) from error


def _given(path: Path | None) -> Path:
    if path is None:
        raise BadInput("The tracker was not begun: give it to a trainer's callbacks.")
    return path
