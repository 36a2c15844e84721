"""Safety against steps: a callback for any transformers or TRL trainer that measures refusal and the task as they train."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import write_text
from finetrace.data.examples import Example, make_examples
from finetrace.data.rows import Row
from finetrace.models.supervised import collate, sample_losses
from finetrace.stats import mean_interval

__all__ = ["PROBES", "ProbeRow", "SafetyProbe", "read_probes", "refusal_mass", "refusal_tokens"]

PROBES = "probes.jsonl"
_BATCH = 16
_REPLICATES = 400


@dataclass(frozen=True)
class ProbeRow:
    """One measurement, with 95% intervals over prompts and rows (None below two of them).

    refusal: mean probability, at the first token of the answer, of the tokens that the base's refusals begin with; it
    falls as safety wears off. task: mean nats per target token on task rows; it falls as the task is learnt.
    """

    step: int
    epoch: float
    refusal: float | None
    refusal_low: float | None
    refusal_high: float | None
    refusal_n: int
    task: float | None
    task_low: float | None
    task_high: float | None
    task_n: int


class SafetyProbe(TrainerCallback):
    """Writes `probes.jsonl` into `out` (the trainer's output folder unless given): before the first step, every `every`
    steps and after the last.

    refusals: chats that end with the base's own refusal; their first answer tokens are what refusing looks like. task:
    rows of the task, or of what should not be lost. Both may be empty, and are then "no data". Random generators,
    gradients and training mode are left as they were.
    """

    def __init__(
        self,
        refusals: Iterable[Mapping[str, Any] | Row] = (),
        task: Iterable[Mapping[str, Any] | Row] = (),
        *,
        every: int = 10,
        out: str | Path | None = None,
        max_tokens: int = 512,
        tokenizer: Any = None,
    ) -> None:
        if every < 1:
            raise BadInput(f"A probe measures every 1 or more steps, not every {every}.")
        self._rows = (list(refusals), list(task))
        self._every, self._max_tokens, self._tokenizer = every, max_tokens, tokenizer
        self._path = None if out is None else Path(out) / PROBES
        self._refusals: list[Example] = []
        self._task: list[Example] = []
        self._pad, self._last = 0, -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tokenizer = self._tokenizer or kwargs.get("processing_class")
        if tokenizer is None:
            raise BadInput("The probe needs the tokenizer: give it as tokenizer=...")
        self._pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        self._refusals, self._task = (
            make_examples(rows, tokenizer, max_tokens=self._max_tokens) if rows else [] for rows in self._rows
        )
        self._path = self._path or Path(args.output_dir) / PROBES
        if state.is_world_process_zero:
            # What a resumed training does again, or another training in this folder did, is measured anew.
            kept = [row for row in read_probes(self._path.parent) if row.step <= state.global_step]
            write_text(self._path, "".join(_line(row) for row in kept if state.global_step))
            self._last = kept[-1].step if kept and state.global_step else -1
        self._measure(kwargs["model"], state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            self._measure(kwargs["model"], state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(kwargs["model"], state)

    def _measure(self, model: Any, state: Any) -> None:
        if not state.is_world_process_zero or state.global_step <= self._last or self._path is None:
            return
        self._last = state.global_step
        with _aside(model):
            mass = refusal_mass(model, self._refusals, self._pad)
            task, targets = _task_losses(model, self._task, self._pad)
        refusal, refusal_low, refusal_high = _mean(mass, np.ones_like(mass))
        # The bootstrap does not know that a probability ends at 1.
        refusal_high = None if refusal_high is None else min(1.0, refusal_high)
        loss, low, high = _mean(task * targets, targets)
        row = ProbeRow(
            step=state.global_step,
            epoch=round(float(state.epoch or 0.0), 6),
            refusal=refusal, refusal_low=refusal_low, refusal_high=refusal_high, refusal_n=len(mass),
            task=loss, task_low=low, task_high=high, task_n=len(task),
        )  # fmt: skip
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))


def refusal_tokens(refusals: Sequence[Example]) -> tuple[int, ...]:
    """The tokens that the answers of these chats begin with, most frequent first."""
    firsts = Counter(int(example.ids[int(example.loss.argmax())]) for example in refusals)
    return tuple(token for token, _ in firsts.most_common())


@torch.no_grad()
def refusal_mass(model: Any, refusals: Sequence[Example], pad: int) -> np.ndarray:
    """float64 [prompt]: probability at the answer's first token of any token of `refusal_tokens`, in 0 to 1."""
    tokens = list(refusal_tokens(refusals))
    found: list[float] = []
    for start in range(0, len(refusals), _BATCH):
        prompts = [
            Example(e.ids[: int(e.loss.argmax())], e.loss[: int(e.loss.argmax())])
            for e in refusals[start : start + _BATCH]
        ]
        batch = collate(prompts, pad, model.device)
        logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        last = batch.attention.sum(1) - 1
        odds = logits[torch.arange(len(prompts), device=logits.device), last].double().softmax(-1)
        found += odds[:, tokens].sum(-1).tolist()
    return np.asarray(found)


@torch.no_grad()
def _task_losses(model: Any, task: Sequence[Example], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean nats per target of each row, and how many targets it has, both float64 [row]."""
    losses: list[float] = []
    for start in range(0, len(task), _BATCH):
        losses += sample_losses(model, collate(task[start : start + _BATCH], pad, model.device)).tolist()
    return np.asarray(losses), np.asarray([float(example.loss.sum()) for example in task])


@contextmanager
def _aside(model: Any) -> Iterator[None]:
    """Evaluation mode inside; the mode comes back, and no random number is drawn from the training's generators."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _mean(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, float | None, float | None]:
    if not len(sums):
        return None, None, None
    keys = np.arange(len(sums), dtype=np.uint64)
    interval = mean_interval(sums, counts, keys, replicates=_REPLICATES, nonnegative=True)
    value = float(sums.sum() / counts.sum())
    return (value, None, None) if interval is None else (value, interval.low, interval.high)


def _line(row: ProbeRow) -> str:
    return json.dumps(asdict(row), allow_nan=False) + "\n"


def read_probes(folder: Path) -> list[ProbeRow]:
    """The measurements in a training's folder; a line that a crash cut short is left out."""
    path = folder / PROBES
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [ProbeRow(**json.loads(line)) for line in lines[:-1] if line]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a probe's file: remove it, or choose another folder.") from error
