"""The pass: every batch goes once through the base and once through each contrast's other side, and feeds everyone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finetrace.core.card import ALL
from finetrace.core.errors import ModelError
from finetrace.data import Batch, Corpus, Shard, batches, shards
from finetrace.engine import journal
from finetrace.engine.divergences import Kernel, compiled_sums
from finetrace.engine.head import (
    HeadChange,
    capped,
    chunk_tokens,
    logit_difference,
    raw_difference,
    raw_logits,
    side_change,
)
from finetrace.engine.observer import Contrast, Job, Observer
from finetrace.engine.shape import Shape
from finetrace.engine.spread import Spread, task
from finetrace.engine.step import LogitChunk, Step
from finetrace.models import Hidden, Pair, layer_index

Tell = Callable[[str], None]
Advance = Callable[[int], None]
T = TypeVar("T")


def run_pass(
    pair: Pair,
    corpus: Corpus,
    jobs: Sequence[Job],
    *,
    shape: Shape,
    advance: Advance = lambda tokens: None,
    tell: Tell = lambda line: None,
    spread: Spread | None = None,
) -> dict[tuple[str, str], Observer]:
    """Runs every job over the whole corpus; returns the observers by (method, contrast label).

    advance: called with the number of tokens done. tell: called with lines that a user should read (a journal refused,
    a batch halved). spread: other processes that read the shards; None reads them here, in order. A shard is journalled
    when it is whole; the total is the left fold of the shards' states in shard order, whoever made them and whenever, so a
    resumed or spread run ends on the same bytes.
    """
    where = journal.environment(pair.device, shape.batch_size)
    _drop_stale(jobs, where, tell)
    cut = shards(corpus, shape.shard_tokens)
    missing = {shard: [job for job in jobs if not journal.done(job.journal, shard)] for shard in cut}
    advance(sum(_tokens(corpus, shard) for shard in cut if not missing[shard]))
    todo = {shard: wanted for shard, wanted in missing.items() if wanted}
    made = (
        spread.shards([task(shard, wanted) for shard, wanted in todo.items()])
        if spread and todo
        else _here(pair, corpus, todo, shape, where, tell)
    )
    for shard, entries in made:
        for job, entry in zip(todo[shard], entries, strict=True):
            journal.put(job.journal, shard, entry)
        advance(_tokens(corpus, shard))
    return {(job.method, job.contrast.label): _fold(job, cut) for job in jobs}


def _drop_stale(jobs: Sequence[Job], where: journal.Environment, tell: Tell) -> None:
    for job in jobs:
        if not isinstance(job.journal, Path):
            continue
        other = journal.stale(job.journal, where)
        if other is not None:
            tell(
                f"The unfinished run in {job.journal} was made on {other}, not {where}: it is done again from the start."
            )
            shutil.rmtree(job.journal)


def _here(
    pair: Pair,
    corpus: Corpus,
    todo: Mapping[Shard, list[Job]],
    shape: Shape,
    where: journal.Environment,
    tell: Tell,
) -> Iterator[tuple[Shard, list[bytes]]]:
    """Each shard's journal entries, made by this process."""
    reader = ShardReader(pair, corpus, shape, tell)
    for shard, jobs in todo.items():
        yield shard, [journal.pack(shard, one.state(), where) for one in reader(shard, jobs)]


class ShardReader:
    """Reads shards of one corpus; a batch that did not fit once is not tried again."""

    def __init__(self, pair: Pair, corpus: Corpus, shape: Shape, tell: Tell) -> None:
        self._pair, self._corpus, self._tell = pair, corpus, tell
        self._batch_size = shape.batch_size
        self._kernel = compiled_sums() if shape.compile else None

    def __call__(self, shard: Shard, jobs: list[Job]) -> list[Observer]:
        observers, self._batch_size = with_room(
            lambda size: run_shard(self._pair, self._corpus, shard, jobs, size, self._kernel),
            self._batch_size,
            self._pair.device,
            self._tell,
        )
        return observers


def _tokens(corpus: Corpus, shard: Shard) -> int:
    return sum(len(corpus.tokens[row].ids) for row in range(shard.start, shard.stop))


def _fold(job: Job, cut: Sequence[Shard]) -> Observer:
    total = job.observer()
    for shard in cut:
        part = job.observer()
        part.restore(journal.fetch(job.journal, shard))
        total.merge(part)
    return total


def with_room(work: Callable[[int], T], batch_size: int, device: torch.device, tell: Tell) -> tuple[T, int]:
    """`work(batch_size)` with the largest batch that fits in memory, halved as often as it must be; and that size."""
    while True:
        try:
            return work(batch_size), batch_size
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if batch_size == 1:
                raise ModelError(
                    "Out of memory with one text at a time: pass --max-tokens, --dtype bfloat16 or a larger device."
                ) from error
        batch_size //= 2
        tell(f"Out of memory: going on with batches of {batch_size}.")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def run_shard(
    pair: Pair,
    corpus: Corpus,
    shard: Shard,
    jobs: list[Job],
    batch_size: int,
    kernel: Kernel | None = None,
) -> list[Observer]:
    """Fresh observers, one a job, after all of the shard's batches."""
    observers = [job.observer() for job in jobs]
    with torch.inference_mode():
        heads = {
            one: side_change(pair, one.side, one.scale)
            for one in (job.contrast for job in jobs if job.needs.logits)
        }
        crew = _Crew(jobs, observers, heads, kernel)
        for batch in batches(corpus, shard, batch_size):
            _feed(pair, on_device(batch, pair.device), crew)
    return observers


@dataclass(frozen=True)
class _Crew:
    """Who reads a shard. heads: what each contrast's head has over the base's, for contrasts whose logits are read."""

    jobs: list[Job]
    observers: list[Observer]
    heads: dict[Contrast, HeadChange | None]
    kernel: Kernel | None


def on_device(batch: Batch, device: torch.device) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "key"}
    return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items()})


def _feed(pair: Pair, batch: Batch, crew: _Crew) -> None:
    """One batch: base once, each contrast once, then steps, then chunks."""
    streams = _streams(pair, crew)
    wanted = tuple(sorted(_layers(pair, crew.jobs) | {layer for _, layer in streams if layer is not None}))
    final = any(layer is None for _, layer in streams)
    base = pair.trunk("base", batch.ids, batch.attention, wanted, final)
    others: dict[Contrast, Hidden] = {}
    for contrast in dict.fromkeys(job.contrast for job in crew.jobs):
        others[contrast] = other_side(pair, contrast, batch, wanted, final)
    steps = {contrast: step_of(batch, base, other) for contrast, other in others.items()}
    pairs = list(zip(crew.jobs, crew.observers, strict=True))
    for job, observer in pairs:
        observer.see(steps[job.contrast])
    for layer in dict.fromkeys(layer for _, layer in streams):
        heads = {contrast: crew.heads[contrast] for contrast, at in streams if at == layer}
        read = _Read(layer, base, {contrast: others[contrast] for contrast in heads}, heads)
        for contrast, chunk in _chunks(pair, batch, read, steps, crew.kernel):
            for observer in streams[contrast, layer]:
                observer.see_logits(chunk)


def _layers(pair: Pair, jobs: Sequence[Job]) -> set[int]:
    """The layers that some job sees."""
    wanted: set[int] = set()
    for job in jobs:
        asked = job.needs.layers
        wanted.update(
            range(pair.n_layers) if asked == ALL else (layer_index(which, pair.n_layers) for which in asked)
        )
    return wanted


def _streams(pair: Pair, crew: _Crew) -> dict[tuple[Contrast, int | None], list[Observer]]:
    """Who reads which logits: of a contrast, from the last layer (None) or through the lens at one."""
    found: dict[tuple[Contrast, int | None], list[Observer]] = {}
    for job, observer in zip(crew.jobs, crew.observers, strict=True):
        if job.needs.logits:
            at = None if job.needs.lens is None else layer_index(job.needs.lens, pair.n_layers)
            found.setdefault((job.contrast, at), []).append(observer)
    return found


# Columns that an echo is wider by: enough for attention kernels to cut the row otherwise.
ECHO_COLUMNS = 8


def other_side(pair: Pair, contrast: Contrast, batch: Batch, layers: tuple[int, ...], final: bool) -> Hidden:
    """The other model's hidden states; an echo is the base again, rows reversed and padded further."""
    if contrast.echo:
        return _echo(pair, contrast.side, batch, layers, final)
    scaled = nullcontext() if contrast.scale == 1.0 else pair.scale_adapter(contrast.side, contrast.scale)
    with scaled:
        return pair.trunk(contrast.side, batch.ids, batch.attention, layers, final)


def _echo(pair: Pair, side: str, batch: Batch, layers: tuple[int, ...], final: bool) -> Hidden:
    width = batch.ids.shape[1]
    room = ECHO_COLUMNS if pair.max_positions is None else min(ECHO_COLUMNS, pair.max_positions - width)
    ids, attention = (F.pad(x.flip(0), (0, max(0, room))) for x in (batch.ids, batch.attention))
    echo = pair.trunk(side, ids, attention, layers, final)
    narrow = {layer: hidden[:, :width].flip(0) for layer, hidden in echo.layers.items()}
    return Hidden(None if echo.final is None else echo.final[:, :width].flip(0), narrow)


def step_of(batch: Batch, base: Hidden, other: Hidden) -> Step:
    return Step(
        row=batch.row,
        key=batch.key,
        slice=batch.slice,
        ids=batch.ids,
        keep=batch.keep,
        role=batch.role,
        position=batch.position,
        next_id=batch.next_id,
        hidden=lambda layer: (base.layers[layer], other.layers[layer]),
    )


@dataclass(frozen=True)
class _Read:
    """Hidden states that logits are read from: of the last layer (None) or through the lens at one."""

    layer: int | None
    base: Hidden
    others: dict[Contrast, Hidden]
    heads: dict[Contrast, HeadChange | None]

    def normed(self, pair: Pair, contrast: Contrast | None, where: tuple[Tensor, Tensor]) -> Tensor:
        """What goes into a side's head for the tokens `where`, [token, d_model]; contrast None: the base's."""
        hidden = self.base if contrast is None else self.others[contrast]
        if self.layer is None:
            return _final(hidden)[where]
        side, scale = ("base", 1.0) if contrast is None else (contrast.side, contrast.scale)
        with nullcontext() if scale == 1.0 else pair.scale_adapter(side, scale):
            return pair.normed(side, hidden.layers[self.layer][where])


def _chunks(
    pair: Pair, batch: Batch, read: _Read, steps: dict[Contrast, Step], kernel: Kernel | None
) -> Iterator[tuple[Contrast, LogitChunk]]:
    """Chunks of kept tokens; the base's logits are made once for all contrasts."""
    rows, positions = batch.keep.nonzero(as_tuple=True)
    size, base_head = chunk_tokens(pair.vocab_size), pair.head("base")
    for start in range(0, len(rows), size):
        where = (rows[start : start + size], positions[start : start + size])
        hidden, target = read.normed(pair, None, where), pair.shared_index(batch.next_id[where])
        raw = raw_logits(base_head, hidden)
        log_probs = capped(base_head, raw).log_softmax(-1)
        for contrast, change in read.heads.items():
            moved = raw_difference(base_head, change, hidden, read.normed(pair, contrast, where))
            difference = logit_difference(base_head, raw, moved)
            yield contrast, LogitChunk(steps[contrast], where, target, log_probs, difference, kernel)


def _final(hidden: Hidden) -> Tensor:
    if hidden.final is None:
        raise RuntimeError("logits were asked for, and the forward stopped before the final norm")
    return hidden.final
