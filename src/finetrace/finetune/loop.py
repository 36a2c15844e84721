"""transformers' Trainer with our loss, our order of rows and our checkpoints; Ctrl-C and divergence end it cleanly."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from finetrace.core.errors import ModelError
from finetrace.finetune import checkpoint as saved
from finetrace.finetune.batches import Order
from finetrace.finetune.model import takes_positions, target_losses
from finetrace.finetune.progress import Progress

__all__ = ["Loop", "Stop", "Watching", "stoppable"]

_STATE = "trainer_state.json"


class Loop(Trainer):
    """The loss is the mean over all targets of a step, however they fall into batches and processes.

    keep: checkpoints that stay. seal: writes what makes a checkpoint's folder usable by itself (the adapter, its stamp).
    """

    def __init__(
        self, *, order: Order, keep: int, seal: Callable[[Path, TrainerState], None], **theirs: Any
    ) -> None:
        super().__init__(**theirs)
        self._order, self._keep, self._seal = order, keep, seal
        self._partial = takes_positions(self.model)
        # So that targets are counted over a whole step, and counted as predicted: the first token of a row never is.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self._order

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses = target_losses(model, inputs, partial=self._partial)
        # What is divided by is the step's targets over all processes, whose gradients are then averaged.
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Before the step, so that the weights are still those of the last good one.
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm: Any = super()._clip_grad_norm(model)
        # In float16 too large a gradient is expected now and then: the scaler skips that step and scales down.
        if not self.args.fp16 and not math.isfinite(float(norm)):
            raise self._diverged(f"the gradient's norm is {float(norm)}")
        return norm

    def _diverged(self, what: str) -> ModelError:
        step = self.state.global_step + 1
        return ModelError(
            f"Training diverged at step {step}: {what}. Use a lower train.lr (now "
            f"{self.args.learning_rate:g}) or a longer train.warmup."
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        out = Path(str(self.args.output_dir))
        folder = out / f"checkpoint-{self.state.global_step}"
        first, rank = self.is_world_process_zero(), self.args.process_index
        with saved.writing(f"The checkpoint of step {self.state.global_step}", out):
            if self.accelerator.num_processes == 1:
                with saved.whole_folder(folder) as part:
                    self._fill(part, first, rank)
            else:
                self._save_together(folder, first, rank)
            if first:
                saved.rotate(out, self._keep)

    def _save_together(self, folder: Path, first: bool, rank: int) -> None:
        """Process 0 makes the folder and renames it; the others add their generators."""
        part = folder.parent / f".{folder.name}.part"
        if first:
            with saved.whole_folder(folder) as part:
                self.accelerator.wait_for_everyone()
                self._fill(part, first, rank)
                self.accelerator.wait_for_everyone()
        else:
            self.accelerator.wait_for_everyone()
            self._fill(part, first, rank)
            self.accelerator.wait_for_everyone()

    def _fill(self, part: Path, first: bool, rank: int) -> None:
        saved.save_generators(part, rank)
        if first:
            saved.save_masters(self.model, part)
            saved.save_optimiser(part, self.optimizer, self.lr_scheduler, self.accelerator.scaler)
            self._seal(part, self.state)
            self.state.save_to_json(str(part / _STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved.load_masters(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saved.load_optimiser(Path(checkpoint), self.optimizer, self.lr_scheduler, self.accelerator.scaler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Done with the optimiser."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saved.load_generators(Path(checkpoint), self.args.process_index)


class Stop:
    """asked: whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, the first Ctrl-C asks for a stop after the step that runs and says so, the second ends at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def pressed(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        line = "Stopping after this step and saving; Ctrl-C again stops at once, without saving."
        print(f"\n{line}", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Watching(TrainerCallback):
    """Shows each step's loss and rate, and stops when asked to."""

    def __init__(self, progress: Progress, stop: Stop) -> None:
        self._progress, self._stop = progress, stop
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._stop.asked:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):
            rate = (state.global_step - self._first) / max(time.monotonic() - self._began, 1e-9)
            note = f"loss {logs['loss']:.3f}, {rate:.3g} steps/s"
            self._progress("training", state.global_step, state.max_steps, note)
