"""`train`: a recipe and rows in, a stamped adapter (or model) out; killed or stopped, the same call goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetrace.core.errors import BadInput, ConfigErrors, FinetraceError, ModelError
from finetrace.core.files import read_json, write_json
from finetrace.data.rows import Row, read_rows
from finetrace.finetune import checkpoint as saved
from finetrace.finetune.batches import Collator, Order, Prepared, Truncation, pack, prepare
from finetrace.finetune.model import (
    Trainable,
    check_length,
    check_packing,
    compute_dtype,
    flat_attention,
    trainable,
)
from finetrace.finetune.progress import Progress, silent
from finetrace.finetune.recipe import TrainRecipe
from finetrace.finetune.scan import ScanResult, require_reason, scan
from finetrace.finetune.sft import save_adapter, save_full
from finetrace.finetune.stamp import Origin, data_hash, differing, read, stamp
from finetrace.models.identity import identity
from finetrace.models.loading import pick_device, quiet
from finetrace.models.source import Source, resolve
from finetrace.models.tokens import load_tokenizer

__all__ = ["LOSSES", "Trained", "train"]

LOSSES = "losses.json"


@dataclass(frozen=True)
class Trained:
    """What training left in `folder`.

    losses: mean nats per target token at each step, from the first. steps: planned; fewer losses mean that Ctrl-C ended
    it, and the same call goes on. trainable, total: parameters.
    """

    folder: Path
    losses: tuple[float, ...]
    trainable: int
    total: int
    truncation: Truncation
    scan: ScanResult
    steps: int

    @property
    def finished(self) -> bool:
        return len(self.losses) >= self.steps

    @property
    def share(self) -> float:
        """The share of all parameters that is trained."""
        return self.trainable / self.total


@dataclass(frozen=True, eq=False)
class _Work:
    """Everything checked and read, before the model loads."""

    recipe: TrainRecipe
    source: Source
    tokenizer: Any
    device: torch.device
    prepared: Prepared
    origin: Origin
    out: Path

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id if isinstance(self.tokenizer.pad_token_id, int) else 0


def train(
    recipe: TrainRecipe,
    rows: str | Path | Iterable[Mapping[str, Any] | Row],
    out: str | Path,
    *,
    base: str | Path | None = None,
    callbacks: Sequence[Any] = (),
    progress: Progress | None = None,
    resume: bool = True,
    reason: str | None = None,
    device: str = "auto",
) -> Trained:
    """Trains what `recipe` says on `rows` and leaves it in `out`, with its stamp, its losses and its checkpoints.

    base: where the recipe's model lies, if not under its own name. callbacks: of transformers' kind. resume: a training
    of the same recipe, data and base that `out` holds goes on from its newest checkpoint, or is returned if it is
    finished. reason: why this data is trained on, asked for where the scan flags more than the recipe's limit. The same
    call gives the same weights, interrupted or not, and leaves the caller's random generators as they were.
    """
    work = _ready(recipe, rows, Path(out), base, reason, device)
    done = _settled(work, resume)
    if done is not None:
        return done
    with _generators_kept(work.device):
        _seed(recipe.train.seed)
        model = trainable(work.recipe, work.source, work.device)
        items: Sequence[Any] = work.prepared.examples
        check_length(model.model, max(map(len, items)))
        _check_room(work, model)
        if work.recipe.data.packing:
            check_packing(model.model, items, work.pad)
            items = pack(items, work.recipe.data.max_tokens)
        kept = saved.checkpoints(work.out) if resume else []
        return _fit(work, model, items, list(callbacks), progress or silent, kept[-1] if kept else None)


def _ready(
    recipe: TrainRecipe,
    rows: str | Path | Iterable[Mapping[str, Any] | Row],
    out: Path,
    base: str | Path | None,
    reason: str | None,
    device: str,
) -> _Work:
    if base is not None and not recipe.model:
        recipe = replace(recipe, model=str(base))
    problems = recipe.problems() + _tracker_problems(recipe)
    if problems:
        raise ConfigErrors(problems)
    where = _own_device(pick_device(device))
    compute_dtype(recipe, where)
    found = read_rows(rows, revision=recipe.data.revision, split=recipe.data.split)
    scanned = scan(found)
    require_reason(scanned, recipe.scan.limit, reason)
    source = resolve(recipe.model if base is None else base, revision=recipe.revision)
    if source.kind != "full":
        raise ModelError(f"{source.name} is an adapter: name the model it was trained on as the base.")
    tokenizer = load_tokenizer(source.name, source.folder)
    prepared = prepare(found, tokenizer, recipe.data.max_tokens)
    origin = Origin(
        recipe=recipe,
        base_hash=identity(source),
        data_hash=data_hash(found),
        device=where.type,
        scan=scanned,
        truncation=prepared.truncation,
        reason=reason,
    )
    return _Work(recipe, source, tokenizer, where, prepared, origin, out)


def _own_device(device: torch.device) -> torch.device:
    """Of several processes that `accelerate launch` or torchrun started, each has a GPU of its own."""
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if rank and device == torch.device("cuda") else device


def _tracker_problems(recipe: TrainRecipe) -> list[str]:
    if not recipe.trackers:
        return []
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations()
    return [
        f"trackers names '{name}', which is unknown or not installed; here: {', '.join(here) or 'none'}"
        for name in recipe.trackers
        if name not in here
    ]


def _settled(work: _Work, resume: bool) -> Trained | None:
    """Deals with what the folder holds: the finished training itself, a checkpoint to go on from, or another training."""
    first = os.environ.get("RANK", "0") == "0"
    if first:
        saved.sweep(work.out)
    if not resume:
        if first:
            saved.rotate(work.out, 0)
        return None
    kept = saved.checkpoints(work.out)
    before = read(kept[-1] if kept else work.out)
    if before is None:
        return None
    changed = differing(before["run"], _as_json(work.origin.run()))
    if changed:
        raise BadInput(
            f"{work.out} holds another training ({'; '.join(changed[:4])}): choose another folder, or start anew there "
            "with resume=False."
        )
    final = read(work.out)
    if final is None or not final["finished"] or not (work.out / LOSSES).is_file():
        return None
    curve = read_json(work.out / LOSSES)
    return _trained(work, tuple(curve["loss"]), curve["trainable"], curve["total"], curve["steps"])


def _as_json(value: Any) -> Any:
    """Tuples as lists, as a file gives them back."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple | list) else value


def _trained(work: _Work, losses: tuple[float, ...], count: int, total: int, steps: int) -> Trained:
    return Trained(work.out, losses, count, total, work.prepared.truncation, work.origin.scan, steps)


def _fit(
    work: _Work,
    model: Trainable,
    items: Sequence[Any],
    callbacks: list[Any],
    progress: Progress,
    begin: Path | None,
) -> Trained:
    """Runs the loop; whatever ends it, the last good weights are in the folder or its newest checkpoint."""
    from finetrace.finetune.loop import stoppable

    cached = model.model.config.use_cache
    with stoppable() as stop:
        loop = _loop(work, model, items, callbacks, (progress, stop))

        def finish() -> Trained:
            model.model.config.use_cache = cached
            return _save(work, model, loop.state)

        try:
            with quiet():
                loop.train(resume_from_checkpoint=None if begin is None else str(begin))
        except ModelError as error:
            if not loop.state.global_step or not _finite(model.model):
                rest = saved.checkpoints(work.out)
                left = f" {rest[-1]} is as it was." if rest else ""
                raise ModelError(f"{error}{left}") from None
            finish()
            raise ModelError(
                f"{error} What step {loop.state.global_step} left is in {work.out}, and can be used."
            ) from None
        except torch.OutOfMemoryError as error:
            raise FinetraceError(
                f"Out of memory at step {loop.state.global_step + 1}: use a smaller train.batch with more "
                "train.accumulate, a smaller data.max_tokens, train.gradient_checkpointing=true, or quant=nf4."
            ) from error
        return finish()


def _loop(
    work: _Work, model: Trainable, items: Sequence[Any], callbacks: list[Any], watch: tuple[Progress, Any]
) -> Any:
    from transformers import PrinterCallback

    from finetrace.finetune.loop import Loop, Watching

    def seal(folder: Path, state: Any) -> None:
        if work.recipe.kind == "lora":
            save_adapter(model.model, folder, base=work.recipe.model)
        stamp(folder, work.origin, step=state.global_step, steps=state.max_steps)

    with quiet():
        loop = Loop(
            order=Order(len(items), work.recipe.train.seed),
            keep=work.recipe.train.keep,
            seal=seal,
            model=model.model,
            args=_arguments(work),
            train_dataset=items,
            data_collator=Collator(work.pad, flat=flat_attention(model.model)),
            callbacks=[Watching(*watch), *callbacks],
        )
    loop.remove_callback(PrinterCallback)
    # Not given to the loop itself, which would write the tokenizer's special tokens into the model's configuration.
    loop.callback_handler.processing_class = work.tokenizer
    return loop


def _arguments(work: _Work) -> Any:
    from transformers import TrainingArguments

    recipe = work.recipe.train
    schedule = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    half = compute_dtype(work.recipe, work.device) == torch.float16
    arguments = TrainingArguments(
        output_dir=str(work.out),
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.lr,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=schedule,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
        fp16=half,
        use_cpu=work.device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if recipe.checkpoint_every else "no",
        save_steps=recipe.checkpoint_every or 500,
        report_to=list(work.recipe.trackers) or "none",
        run_name=work.recipe.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=work.device.type == "cuda",
    )
    # One process uses one GPU: `accelerate launch` starts one process each, torch's DataParallel would split packed rows.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _save(work: _Work, model: Trainable, state: Any) -> Trained:
    """The trained weights, the loss curve and the stamp, put in place together; the folder is no checkpoint before."""
    log = [entry for entry in state.log_history if "loss" in entry]
    trained = _trained(
        work, tuple(entry["loss"] for entry in log), model.parameters, model.total, state.max_steps
    )
    if not state.is_world_process_zero:
        return trained
    part = work.out / ".final.part"
    with saved.writing("The result", work.out):
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            if work.recipe.kind == "lora":
                save_adapter(model.model, part, base=work.recipe.model)
            else:
                save_full(model.model, part, dtype=torch.float32)
                work.tokenizer.save_pretrained(str(part))
            write_json(part / LOSSES, _curve(trained, log))
            stamp(part, work.origin, step=state.global_step, steps=state.max_steps)
            for path in sorted(part.iterdir(), key=_last):
                os.replace(path, work.out / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return trained


def _last(path: Path) -> tuple[int, str]:
    """What makes a folder a checkpoint, and then its stamp, come last."""
    return (("config" in path.name) + 2 * (path.name == "finetrace.json"), path.name)


def _curve(trained: Trained, log: list[dict[str, Any]]) -> dict[str, Any]:
    norms = [float(entry["grad_norm"]) for entry in log]
    return {
        "unit": "nats per target token",
        "step": [entry["step"] for entry in log],
        "epoch": [entry["epoch"] for entry in log],
        "loss": list(trained.losses),
        "learning_rate": [entry["learning_rate"] for entry in log],
        # A step that float16's scaler skipped has no finite norm.
        "gradient_norm": [norm if np.isfinite(norm) else None for norm in norms],
        "steps": trained.steps,
        "trainable": trained.trainable,
        "total": trained.total,
        "share": trained.share,
    }


def _finite(model: Any) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)


def _check_room(work: _Work, model: Trainable) -> None:
    """A FinetraceError if the result would not fit on the disk: better before the training than after it."""
    recipe = work.recipe.train
    # A checkpoint holds the weights twice (one of them for use) and AdamW's two moments; a new one comes before an old goes.
    copies = 1 + 4 * (recipe.keep + 1) * bool(recipe.checkpoint_every)
    needed = 4 * model.parameters * copies
    work.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work.out).free
    if free < needed:
        raise FinetraceError(
            f"{work.out} has {free / 2**30:.2f} GiB free, and the result and its checkpoints need "
            f"{needed / 2**30:.2f} GiB: free some space, or use a lower train.keep or train.checkpoint_every=0."
        )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's global generators are the caller's again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
