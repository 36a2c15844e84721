"""What a run would cost: tokens, time, memory, disk and money. Nothing is fetched and no weight is loaded for it.

Where the checkpoints are here, the figures come from their headers and the tokenised texts; where they are not, from the
names that they go by and the length of the texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from finetrace.api.run.held import data_held, held
from finetrace.api.run.spec import Spec
from finetrace.config.tree import ModelEntry
from finetrace.core.amounts import duration, size_in_words

if TYPE_CHECKING:
    from finetrace.api.request import Request
    from finetrace.data import Row

__all__ = ["RunCost", "cost_of", "parameters_of", "total"]

N = TypeVar("N", int, float)
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
# Of models whose names do not say it, as their cards do.
_KNOWN = {"gpt2": 124e6, "Devstral-Small": 23.6e9, "Mistral-Large": 123e9}
_ADAPTER = 0.05
"""Of the base's weights, about, in an adapter of rank 32 to 64 on all linear layers."""
_CHARACTERS = 4
_VOCABULARY = 150_000


@dataclass(frozen=True)
class RunCost:
    """tokens: of the texts, without padding; read `passes` times. seconds: to about a factor of 2, or of 4 where `known`
    is false: then what is here are the names only. bytes: peak memory. disk: results, at most. fetched: what is not here
    -> its size in bytes. lines: on methods, answers and judges. asked: what judges and agents read and write, in tokens;
    money: its price, where one is given. stored: hidden states that are kept on disk, in words; storing: seconds of that. None: not
    known."""

    tokens: int | None
    passes: int
    seconds: float | None
    bytes: int | None
    disk: int | None
    device: str
    known: bool = True
    fetched: Mapping[str, int | None] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    asked: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    money: float | None = None
    runs: int = 1
    stored: str | None = None
    storing: float = 0.0

    def lines(self) -> Iterator[tuple[str, str]]:
        """(what, how much) in words."""
        about = "" if self.known else "about "
        read = f", read {self.passes} times" if self.runs == 1 else ""
        yield (
            "tokens",
            "not known: the data is not here yet" if self.tokens is None else f"{about}{self.tokens:,}{read}",
        )
        for line in self.said:
            yield "after that", line
        if self.stored is not None:
            yield "stored", self.stored
        yield "time", self._time()
        yield "memory", "not known" if self.bytes is None else f"about {size_in_words(self.bytes)}"
        yield "disk", f"at most about {size_in_words(self.disk or 0)} of results{self._to_fetch()}"
        yield from self._money()

    def _time(self) -> str:
        if self.seconds is None:
            return "not known"
        how = (
            "from a short matrix product; +-2x"
            if self.known
            else "by the model's name, as it is not here; +-4x"
        )
        return f"about {duration(self.seconds)} on {self.device} ({how})"

    def _to_fetch(self) -> str:
        if not self.fetched:
            return "; nothing is to be fetched"
        sizes = [size for size in self.fetched.values() if size is not None]
        parts = [
            f"{name} ({'size not known here' if size is None else f'about {size_in_words(size)}'})"
            for name, size in self.fetched.items()
        ]
        shown = ", ".join(parts[:_SHOWN]) + (
            f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
        )
        least = (
            f"about {size_in_words(sum(sizes))}"
            if len(sizes) == len(self.fetched)
            else f"at least {size_in_words(sum(sizes))}"
        )
        return f"; to be fetched: {least}: {shown}"

    def _money(self) -> Iterator[tuple[str, str]]:
        for name, (read, wrote) in self.asked.items():
            yield "asked", f"{name}: about {read:,} tokens read and {wrote:,} written"
        if not self.asked:
            yield "money", "none: no model that is paid for is asked"
        elif self.money is None:
            yield (
                "money",
                "not known: judge_price=[READ,WRITTEN] gives the price of a million tokens, none is built in",
            )
        else:
            yield "money", f"about {self.money:.2f}, at the price given"


_SHOWN = 6


def total(costs: Sequence[RunCost]) -> RunCost:
    """All runs of a sweep, one after the other: what several fetch is fetched once, memory is that of the largest."""
    fetched: dict[str, int | None] = {}
    asked: dict[str, tuple[int, int]] = {}
    for cost in costs:
        fetched |= cost.fetched
        for name, (read, wrote) in cost.asked.items():
            had = asked.get(name, (0, 0))
            asked[name] = had[0] + read, had[1] + wrote
    paid = [cost.money for cost in costs if cost.asked]
    return RunCost(
        tokens=_sum([cost.tokens for cost in costs]),
        passes=sum(cost.passes for cost in costs),
        seconds=_sum([cost.seconds for cost in costs]),
        bytes=max((cost.bytes for cost in costs if cost.bytes is not None), default=None),
        disk=_sum([cost.disk for cost in costs]),
        device=costs[0].device,
        known=all(cost.known for cost in costs),
        fetched=fetched,
        asked=asked,
        money=_sum(paid),
        runs=len(costs),
    )


def cost_of(spec: Spec) -> RunCost:
    """The run's cost; stages that its mode leaves out cost nothing."""
    request, mode = spec.request, spec.config.pipeline.mode
    missing = _missing(spec)
    if mode == "evaluation":
        found = RunCost(0, 0, 0.0, None, 0, "cpu", fetched=missing)
    elif missing:
        found = _by_name(spec, missing)
    else:
        found = _by_headers(spec)
    if mode == "preprocessing":
        found = replace(found, passes=0, seconds=found.storing, disk=0, said=(), asked={})
    asked = {**found.asked, **_agents(spec)}
    return replace(found, asked=asked, money=_paid(request, asked))


def parameters_of(model: ModelEntry) -> float | None:
    """How many weights a model has, by its name: 1.7e9 of Qwen/Qwen3-1.7B; None where the name does not say.

    >>> parameters_of(ModelEntry("m", "Qwen/Qwen3-1.7B-Base")), parameters_of(ModelEntry("m", "me/mine"))
    (1700000000.0, None)
    """
    name = model.model_id.rsplit("/", 1)[-1]
    for start, size in _KNOWN.items():
        if name.startswith(start):
            return size
    found = _SIZE.search(name.replace("_", "-"))
    return None if found is None else float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6)


def _missing(spec: Spec) -> dict[str, int | None]:
    """What is not on this machine, and its size as far as names tell it."""
    request, model = spec.request, spec.config.model
    size = parameters_of(model)
    width = 4 if model.checkpoint_dtype == "float32" else 2
    whole = None if size is None else int(size * width)
    part = None if size is None else int(size * _ADAPTER * 4)
    found: dict[str, int | None] = {}
    if not held(request.base, request.revision):
        found[request.base] = whole
    if request.tuned is not None and not held(request.tuned, request.tuned_revision):
        found[request.tuned] = part if spec.config.variant.adapter_id else whole
    found |= {null: part for null in request.nulls if null != "train" and not held(null, None)}
    if not data_held(request.data):
        found[f"the data {request.data.name}"] = None
    return found


def _by_headers(spec: Spec) -> RunCost:
    from finetrace.api.audit import asked_for, with_bundled_nulls
    from finetrace.api.cost import estimate

    request = spec.request
    found = estimate(with_bundled_nulls(request), spec.chosen, asked_for(request, spec.chosen))
    answers = [line for line in found.answers if not line.startswith("the judge ")]
    return RunCost(
        tokens=found.tokens,
        passes=found.passes,
        seconds=found.seconds,
        bytes=found.bytes,
        disk=found.disk,
        stored=found.stored and found.stored.said,
        storing=found.storing,
        device=found.device,
        said=(*found.own, *answers),
        asked={name: (spent.tokens_in, spent.tokens_out) for name, spent in found.judged.items()},
    )


def _by_name(spec: Spec, missing: Mapping[str, int | None]) -> RunCost:
    """An estimate for checkpoints that are not here: by their size's name, and the texts' length in characters."""
    from finetrace.api.audit import asked_for, rows_for
    from finetrace.api.cost import (
        OVERHEAD,
        TRAINING,
        WRITTEN,
        disk_of,
        flops,
        judged_by,
        labelled_by,
        passes_of,
        results_of,
    )
    from finetrace.api.nulls import COUNT
    from finetrace.models.loading import DTYPES, pick_device

    request, size = spec.request, parameters_of(spec.config.model)
    nulls = COUNT if request.trains_nulls else len(request.nulls)
    passes, results = passes_of(request, spec.chosen, nulls), results_of(request, spec.chosen, nulls)
    rows = rows_for(request, held_out=request.trains_nulls) if data_held(request.data) else None
    tokens = None if rows is None else sum(_tokens(row, request.max_tokens) for row in rows)
    prompts = asked_for(request, spec.chosen)
    judged = judged_by(request, prompts) | labelled_by(request, spec.chosen)
    sides = 2 + nulls
    written = len(prompts) * sides * request.written.samples
    device = pick_device(request.device)
    dtype = DTYPES.get(request.dtype, DTYPES["float32" if device.type == "cpu" else "bfloat16"])
    copies = 2 if spec.config.variant.model_id else 1
    work = None if tokens is None else tokens * passes + WRITTEN * written * request.written.max_new_tokens
    work = work if work is None or not request.trains_nulls else work + TRAINING
    rate = flops(dtype, device, 1024)
    line = f"{written:,} answers ({len(prompts)} prompts, {sides} sides), of at most {request.written.max_new_tokens} tokens"
    return RunCost(
        tokens=tokens,
        passes=passes,
        seconds=None if size is None or work is None else OVERHEAD * 2 * size * work / rate,
        bytes=None if size is None else int(size * dtype.itemsize * copies),
        disk=disk_of(request, spec.chosen, results, (_VOCABULARY, 2)),
        device=str(device),
        known=False,
        stored=None if request.store is None else "not known: the model is not here yet",
        fetched=missing,
        said=(line,) if prompts else (),
        asked={name: (spent.tokens_in, spent.tokens_out) for name, spent in judged.items()},
    )


def _tokens(row: Row, most: int | None) -> int:
    texts = [row.text or ""] if row.messages is None else [message.content for message in row.messages]
    found = sum(len(text) for text in texts) // _CHARACTERS + 1
    return found if most is None else min(found, most)


def _agents(spec: Spec) -> dict[str, tuple[int, int]]:
    """What the models that evaluate read and write, by name."""
    from finetrace.api.run.evaluation import estimate

    found = estimate(spec.config)
    return {f"evaluation by {name}": (spent.tokens_in, spent.tokens_out) for name, spent in found.items()}


def _paid(request: Request, asked: Mapping[str, tuple[int, int]]) -> float | None:
    if not asked or request.judge_price is None:
        return None
    read, written = request.judge_price
    return sum(read * one[0] + written * one[1] for one in asked.values()) / 1_000_000


def _sum(found: Sequence[N | None]) -> N | None:
    """The sum, or None where one of them is not known."""
    known = [one for one in found if one is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(found) else None
