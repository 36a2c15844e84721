"""What one training is: every value that changes its result, checked all at once before anything loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

__all__ = [
    "DTYPES",
    "QUANTISATIONS",
    "SCHEDULES",
    "Data",
    "Drift",
    "Lora",
    "Probe",
    "Scan",
    "SetDiff",
    "Snip",
    "Train",
    "TrainRecipe",
]

ALL_LINEAR = "all-linear"
KINDS = ("lora", "full")
QUANTISATIONS = ("none", "nf4")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("auto", "bfloat16", "float32", "float16")
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Lora:
    """The adapter. alpha None means 2 * r. targets: module names, or ("all-linear",) for all but the head.

    layers: decoder layers that get an adapter, from 0; None is all. rslora: scale by alpha / sqrt(r). dora: with
    DoRA's magnitudes.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    layers: tuple[int, ...] | None = None
    rslora: bool = False
    dora: bool = False

    def problems(self) -> list[str]:
        wrong = _at_least(1, "lora.r", self.r)
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            wrong.append(f"lora.alpha is {self.alpha}; it must be above 0 (leave it out for 2 * r)")
        if not 0 <= self.dropout < 1:
            wrong.append(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.targets:
            wrong.append(f"lora.targets is empty; name modules (q_proj, v_proj), or [{ALL_LINEAR}] for all")
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            wrong.append(f"lora.targets names {ALL_LINEAR} beside others; give either")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            wrong.append("lora.layers must name at least one layer, counted from 0")
        if self.layers and self.targets == (ALL_LINEAR,):
            wrong.append("lora.targets must name modules where lora.layers are given")
        return wrong


@dataclass(frozen=True)
class Data:
    """What is learnt. source: a file or hub dataset that is used unless the user gives one; revision, split: of the hub.

    max_tokens: longer rows are cut to it, and the report says how many. packing: several rows in one sequence, each
    seeing only itself.
    """

    source: str | None = None
    revision: str | None = None
    split: str | None = None
    max_tokens: int = 1024
    packing: bool = False

    def problems(self) -> list[str]:
        return _at_least(2, "data.max_tokens", self.max_tokens)


@dataclass(frozen=True)
class Train:
    """How it is learnt. lr: AdamW's peak rate. batch: rows at a time; accumulate: batches to one step.

    max_steps wins over epochs. warmup: below 1 a share of all steps, from 1 on a number of steps. clip: the largest
    norm of all gradients together. dtype: of the frozen base ("auto" is bfloat16, or float16 on GPUs without it); what
    is trained is float32 always. checkpoint_every: steps, 0 for none; keep: how many
    of the newest stay.
    """

    lr: float = 2e-4
    batch: int = 4
    accumulate: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    warmup: float = 0.0
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    dtype: str = "auto"
    seed: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    gradient_checkpointing: bool = False

    def problems(self) -> list[str]:
        wrong = _at_least(1, "train.batch", self.batch) + _at_least(1, "train.accumulate", self.accumulate)
        wrong += [] if self.max_steps is None else _at_least(1, "train.max_steps", self.max_steps)
        for name, value in (("lr", self.lr), ("epochs", self.epochs), ("clip", self.clip)):
            if not (isfinite(value) and value > 0):
                wrong.append(f"train.{name} is {value}; it must be a number above 0")
        for name, value in (("warmup", self.warmup), ("weight_decay", self.weight_decay)):
            if not (isfinite(value) and value >= 0):
                wrong.append(f"train.{name} is {value}; it must be a number not below 0")
        if isfinite(self.warmup) and self.warmup > 1 and self.warmup != int(self.warmup):
            wrong.append(f"train.warmup is {self.warmup}; give a share below 1 or a whole number of steps")
        if self.max_steps is not None and self.warmup > self.max_steps:
            wrong.append(f"train.warmup ({self.warmup:g}) is longer than train.max_steps ({self.max_steps})")
        wrong += _one_of("train.schedule", self.schedule, SCHEDULES)
        wrong += _one_of("train.dtype", self.dtype, DTYPES)
        if not 0 <= self.seed <= _LARGEST_SEED:
            wrong.append(f"train.seed is {self.seed}; it must be from 0 to {_LARGEST_SEED}")
        wrong += _at_least(0, "train.checkpoint_every", self.checkpoint_every)
        return wrong + _at_least(1, "train.keep", self.keep)


@dataclass(frozen=True)
class Snip:
    """top_k: the share of each matrix's entries that a group takes by SNIP score."""

    top_k: float = 0.01

    def problems(self) -> list[str]:
        return _share("snip.top_k", self.top_k)


@dataclass(frozen=True)
class SetDiff:
    """The set-difference group: the top share q by safety without the top share p by utility."""

    p: float = 0.1
    q: float = 0.1

    def problems(self) -> list[str]:
        return _share("set_diff.p", self.p) + _share("set_diff.q", self.q)


@dataclass(frozen=True)
class Drift:
    """every: steps between two measurements of drift, 0 for none."""

    every: int = 0

    def problems(self) -> list[str]:
        return _at_least(0, "drift.every", self.every)


@dataclass(frozen=True)
class Probe:
    """every: steps between two measurements of refusal mass and task loss, 0 for none. rows: how many rows of each."""

    every: int = 0
    rows: int = 32

    def problems(self) -> list[str]:
        return _at_least(0, "probe.every", self.every) + _at_least(1, "probe.rows", self.rows)


@dataclass(frozen=True)
class Scan:
    """limit: the share of flagged rows from which on a reason is asked for and recorded."""

    limit: float = 0.01

    def problems(self) -> list[str]:
        if 0 <= self.limit <= 1:
            return []
        return [f"scan.limit is {self.limit}; it must be a share from 0 to 1"]


@dataclass(frozen=True)
class TrainRecipe:
    """One training. model: a folder or hub id of the base, with `revision` pinning the latter.

    kind: "lora" trains an adapter, "full" every weight. quant: "nf4" holds the base in 4 bits, double-quantised
    (QLoRA). trackers: names that Accelerate knows ("tensorboard", "wandb", ...); none by default.
    """

    name: str = "custom"
    model: str = ""
    revision: str | None = None
    kind: str = "lora"
    lora: Lora = field(default_factory=Lora)
    quant: str = "none"
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    snip: Snip = field(default_factory=Snip)
    set_diff: SetDiff = field(default_factory=SetDiff)
    drift: Drift = field(default_factory=Drift)
    probe: Probe = field(default_factory=Probe)
    scan: Scan = field(default_factory=Scan)
    trackers: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """All that is wrong with the recipe, each with the dotted name it is set by."""
        wrong = [] if self.model.strip() else ["model is empty; give a folder or a hub id"]
        wrong += _one_of("kind", self.kind, KINDS) + _one_of("quant", self.quant, QUANTISATIONS)
        wrong += self.lora.problems() if self.kind != "full" else []
        for part in (
            self.data, self.train, self.snip, self.set_diff, self.drift, self.probe, self.scan
        ):  # fmt: skip
            wrong += part.problems()
        if self.kind == "full" and self.quant != "none":
            wrong.append(
                f"quant is {self.quant} and kind is full; a base in 4 bits can only carry an adapter"
            )
        if self.kind == "full" and self.train.dtype not in ("auto", "float32"):
            wrong.append(
                f"train.dtype is {self.train.dtype} and kind is full; updates are smaller than what it rounds off: "
                "float32 (or auto)"
            )
        return wrong


def _at_least(least: int, name: str, value: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"{name} is {value}; it must be a whole number, {least} or more"]


def _share(name: str, value: float) -> list[str]:
    return [] if 0 < value < 1 else [f"{name} is {value}; it must be a share above 0 and below 1"]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> list[str]:
    return [] if value in known else [f"{name} is '{value}'; known: {', '.join(known)}"]
