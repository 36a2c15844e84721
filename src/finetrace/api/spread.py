"""An audit's work in other processes: what a worker must know, how it opens the pair again, and what it sends back."""

from __future__ import annotations

import platform
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetrace.api.calibration import Sets
from finetrace.api.desks import Table
from finetrace.api.plan import observer_maker
from finetrace.api.request import Chosen, Request
from finetrace.core.card import method
from finetrace.core.decoding import Decoding
from finetrace.core.errors import ModelError
from finetrace.core.files import write_text
from finetrace.core.shelf import Shelf
from finetrace.data import Corpus, Shard, shards
from finetrace.data.asks import Arm
from finetrace.data.prompts import Prompt
from finetrace.engine import Answers, Contrast, Job, Shape, journal, make_subject
from finetrace.engine.ray_pool import Station, cluster, open_pool
from finetrace.engine.run import ShardReader
from finetrace.engine.shape import Workers
from finetrace.engine.spread import Place, Pool, Task
from finetrace.models import Pair, Source, resolve
from finetrace.models.assembly import Plan

if TYPE_CHECKING:
    from finetrace.api.maker import Opened

__all__ = ["Crew", "Made", "Recipe", "Turn", "gpus_for", "plan_there", "recipe_for"]

Tell = Callable[[str], None]
ANSWERS = ".answers"
_ELSEWHERE = Path("unused")  # the audit's own process keeps the journal


@dataclass(frozen=True)
class Asked:
    """What the sides are asked, how they answer, and where the answers are kept."""

    folder: Path
    prompts: tuple[Prompt, ...]
    decoding: Decoding
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Turn:
    """One method's own run on one contrast. scratch: below the shelf's root. seen: what its observer found."""

    method: str
    contrast: Contrast
    scratch: str
    seen: Any | None


@dataclass(frozen=True)
class Made:
    """What a worker made of a task in so many seconds, and what it had to say meanwhile."""

    value: Any
    seconds: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to do the same as this process: the checkpoints by name, folder and content, and the texts as
    tokens. It is sent once to each worker, and opens there when called.

    threads: torch's, which move the last bit. root: the shelf's; stamp: a file in it while the audit lasts, by which a
    worker sees whether it is on the same disk.
    """

    plan: Plan
    identities: Mapping[str, str]
    tokenizer: str
    corpus: Corpus
    methods: tuple[tuple[str, Any], ...]
    seed: int
    shape: Shape
    max_tokens: int | None
    sets: Sets
    asked: Asked | None
    threads: int
    root: Path
    stamp: str

    def __call__(self) -> Station:
        torch.set_num_threads(self.threads)
        pair = Pair(_plan_here(self.plan))
        for side, wanted in self.identities.items():
            if pair.identity(side) != wanted:
                raise ModelError(
                    f"On {platform.node()}, {pair.source(side).folder} holds other weights for '{side}' "
                    f"({pair.source(side).name}) than this audit's: bring the checkpoints of the nodes to one state."
                )
        if pair.tokenizer_identity() != self.tokenizer:
            raise ModelError(f"On {platform.node()}, the base's tokenizer is another than this audit's.")
        pair.load()
        where = journal.environment(pair.device, self.shape.batch_size)
        device = str(pair.device) if pair.device.type == "cpu" else str(where["unit"])
        return Station(_Reader(self, pair), device, where)


class _Reader:
    """A worker's side: does shards and own runs on the pair that it has opened."""

    def __init__(self, recipe: Recipe, pair: Pair) -> None:
        self._recipe, self._pair, self._lines = recipe, pair, list[str]()
        self._chosen = {name: Chosen(method(name), config) for name, config in recipe.methods}
        self._where = journal.environment(pair.device, recipe.shape.batch_size)
        self._shards = ShardReader(pair, recipe.corpus, recipe.shape, self._lines.append)
        self._cut = {one.index: one for one in shards(recipe.corpus, recipe.shape.shard_tokens)}
        # Seen from here: the audit's own folder. A node with a disk of its own does without.
        self._shared = recipe.root if (recipe.root / recipe.stamp).is_file() else None
        self._table = self._make_table()

    def __call__(self, task: Task | Turn) -> Made:
        self._lines.clear()
        began = time.time()
        value = self._shard(task) if isinstance(task, Task) else self._own(task)
        return Made(value, time.time() - began, tuple(self._lines))

    def _shard(self, task: Task) -> list[bytes]:
        if self._cut.get(task.shard.index) != task.shard:
            raise RuntimeError(f"shard {task.shard.index} is not the one that was asked for")
        slices, seed = self._recipe.corpus.slices, self._recipe.seed
        jobs = []
        for name, contrast in task.readers:
            chosen = self._chosen[name]
            maker = observer_maker(chosen, make_subject(self._pair, slices, contrast.side, seed))
            jobs.append(Job(name, contrast, chosen.needs, maker, journal=_ELSEWHERE))
        found = self._shards(task.shard, jobs)
        return [journal.pack(task.shard, one.state(), self._where) for one in found]

    def _own(self, turn: Turn) -> Any:
        chosen = self._chosen[turn.method]
        if self._shared is not None:
            return self._table.run(chosen, turn.contrast, self._shared / turn.scratch, turn.seen)
        with tempfile.TemporaryDirectory(prefix="finetrace-") as folder:
            return self._table.run(chosen, turn.contrast, Path(folder), turn.seen)

    def _make_table(self) -> Table:
        recipe, asked, tell = self._recipe, self._recipe.asked, self._lines.append
        written = None
        if asked is not None:
            folder = None if self._shared is None else asked.folder
            written = Answers(
                self._pair, asked.prompts, asked.decoding, arms=asked.arms, folder=folder, tell=tell
            )
        return Table(
            pair=self._pair,
            slices=recipe.corpus.slices,
            sets=recipe.sets,
            seed=recipe.seed,
            max_tokens=recipe.max_tokens,
            batch_size=recipe.shape.batch_size,
            written=written,
            tell=tell,
        )


def recipe_for(request: Request, methods: Sequence[Chosen], opened: Opened, shelf: Shelf) -> Recipe:
    """What this process has opened, for others to open."""
    pair, written, folder = opened.pair, opened.written, shelf.aside(ANSWERS).resolve()
    asked = written and Asked(folder, written.prompts, written.decoding, tuple(written.arms.values()))
    return Recipe(
        plan=plan_there(pair.plan),
        identities={side: pair.identity(side) for side in pair.sides},
        tokenizer=pair.tokenizer_identity(),
        corpus=opened.corpus,
        methods=tuple((chosen.card.name, chosen.config) for chosen in methods),
        seed=request.seed,
        shape=request.shape,
        max_tokens=request.max_tokens,
        sets=dict(opened.sets),
        asked=asked,
        threads=torch.get_num_threads(),
        root=shelf.root.resolve(),
        stamp=f".workers-{secrets.token_hex(8)}",
    )


def plan_there(plan: Plan) -> Plan:
    """The plan as another process may read it: whole paths, and devices counted from the first that it is given."""
    tokenizer = plan.tokenizer
    if tokenizer is not None and Path(tokenizer).expanduser().exists():
        tokenizer = Path(tokenizer).expanduser().resolve()
    whole = replace(plan, others=dict(plan.others), tokenizer=tokenizer)
    if _spreads(plan):
        return whole
    order = list(dict.fromkeys(_gpus(plan)))

    def there(device: torch.device) -> torch.device:
        cuda = device.type == "cuda"
        return torch.device("cuda", order.index(_whole(device))) if cuda else device

    tuned = plan.tuned and replace(plan.tuned, device=there(plan.tuned.device))
    return replace(whole, device=there(plan.device), tuned=tuned)


def _whole(device: torch.device) -> torch.device:
    """A bare `cuda` is the first."""
    return torch.device(device.type, device.index or 0)


def _gpus(plan: Plan) -> list[torch.device]:
    """The base's GPU and tuned's, as far as they are on one."""
    devices = [plan.device, *([plan.tuned.device] if plan.tuned else [])]
    return [_whole(one) for one in devices if one.type == "cuda"]


def _spreads(plan: Plan) -> bool:
    """Whether a side lies over all GPUs."""
    return plan.spread or (plan.tuned is not None and plan.tuned.spread)


def gpus_for(plan: Plan) -> int:
    """GPUs that a worker of this plan holds."""
    return torch.cuda.device_count() if _spreads(plan) else len(set(_gpus(plan)))


class Crew:
    """An audit's workers. They start when there is first something to do, and stop with the block.

    They must run on what this process runs on: a processor of another kind, or another torch, would move the last bits of
    figures, so that a worker there is left out.
    """

    def __init__(self, recipe: Recipe, workers: Workers, tell: Tell) -> None:
        self._recipe, self._workers, self._tell = recipe, workers, tell
        self._where = journal.environment(recipe.plan.device, recipe.shape.batch_size)
        self._held = ExitStack()
        self._pool: Pool | None = None
        self._told = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool = None
        self._held.close()

    def shards(self, tasks: Sequence[Task]) -> Iterator[tuple[Shard, list[bytes]]]:
        for index, made in self._made(tasks):
            yield tasks[index].shard, made.value

    def own(self, turns: Sequence[Turn]) -> Iterator[tuple[int, Made]]:
        """(index, result) of every turn, as they come."""
        return self._made(turns)

    def _made(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Made]]:
        for index, made in self._opened().map(tasks):
            for line in made.lines:
                self._tell(line)
            yield index, made
        self._say_where()

    def _opened(self) -> Pool:
        if self._pool is None:
            self._say_threads()
            self._held.enter_context(cluster(self._workers))
            stamp = self._recipe.root / self._recipe.stamp
            write_text(stamp, "")
            self._held.callback(stamp.unlink, missing_ok=True)
            gpus = gpus_for(self._recipe.plan)
            self._pool = open_pool(self._recipe, self._workers, gpus=gpus, fit=self._fit, tell=self._tell)
            self._held.callback(self._pool.close)
        return self._pool

    def _say_threads(self) -> None:
        """Threads that would only get into one another's way."""
        threads, cores = self._recipe.threads, self._workers.cpus
        if self._recipe.plan.device.type == "cpu" and threads > max(1, cores) and self._workers.count != 1:
            self._tell(
                f"Each worker has {threads} threads, as this process has, for {cores:g} cores: OMP_NUM_THREADS="
                f"{max(1, int(cores))} is faster with several workers, and its figures differ in the last bits."
            )

    def _fit(self, place: Place) -> str | None:
        there, here = place.environment or {}, self._where
        other = [
            f"{_WORDS.get(key, key)} is {there.get(key)} there and {here[key]} here"
            for key in here
            if there.get(key) != here[key]
        ]
        return f"{' and '.join(other)}, which moves the last bits of figures" if other else None

    def _say_where(self) -> None:
        if self._pool is None or self._told:
            return
        self._told = True
        places = Counter((place.node, place.device) for place in self._pool.places)
        said = ", ".join(f"{count} on {node} ({device})" for (node, device), count in sorted(places.items()))
        self._tell(f"Workers: {said}.")


_WORDS = {"unit": "the processor", "threads": "torch's threads", "batch": "the batch"}


def _plan_here(plan: Plan) -> Plan:
    """The plan with this machine's folders: those of the plan where they are here too, else fetched by name and commit."""
    others = {side: source and _source_here(source) for side, source in plan.others.items()}
    return replace(plan, base=_source_here(plan.base), others=others)


def _source_here(source: Source) -> Source:
    if source.folder.is_dir():
        return source
    try:
        return resolve(source.name, revision=source.revision)
    except ModelError as error:
        raise ModelError(
            f"On {platform.node()}, where a worker runs, {source.folder} does not exist, and: {error}"
        ) from None
