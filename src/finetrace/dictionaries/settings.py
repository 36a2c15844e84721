"""How a dictionary is trained: every choice in one place, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from finetrace.core.errors import ConfigErrors
from finetrace.dictionaries.dictionary import CODE_NORMS, KINDS, CodeNorm, Kind
from finetrace.dictionaries.losses import Objective

__all__ = ["Training", "check"]

Dtype = Literal["bfloat16", "float32"]
Bias = Literal["mean", "median"]
_LR, _LR_LATENTS = 2e-4, 2**14


@dataclass(frozen=True)
class Training:
    """Shares are of `steps`; penalties are in the units of `Objective`.

    k: codes a row (batch_topk), reached from k_start (None: from the first step) in a straight line over the share
    `anneal`. lr: None is 2e-4 at 16,384 latents, and falls with the square root of their number. warmup, decay: the shares
    at either end in which the learning rate rises from and falls to 0.

    dead_after: rows without a code after which a latent is dead, None for a twentieth of all rows. aux_alpha: weight of
    what dead latents learn from; 0 for none. aux_k: dead codes a row, None for half of d.

    l1: of the ReLU kind. delta: weight of the difference's own loss, exclusive: share of latents that write into one model
    only, half of them into each (both of crosscoders). code_norm: of crosscoders; an SAE's decoder has rows of norm 1.

    bias: where the decoder's bias begins. sample: rows from which the mean, the scale and the median are taken.
    validate: times that the held-out rows are looked at; patience: how many of those without a gain end the training,
    None for never. dtype: of the products; weights, sums and moments are float32 in any case.
    """

    latents: int
    k: int = 32
    kind: Kind = "batch_topk"
    code_norm: CodeNorm = "crosscoder"
    lr: float | None = None
    batch: int = 1024
    steps: int = 1000
    warmup: float = 0.05
    decay: float = 0.2
    k_start: int | None = None
    anneal: float = 0.2
    dead_after: int | None = None
    aux_alpha: float = 1 / 32
    aux_k: int | None = None
    l1: float = 0.1
    delta: float = 0.0
    exclusive: float = 0.0
    bias: Bias = "mean"
    sample: int = 8192
    validate: int = 10
    patience: int | None = None
    seed: int = 0
    dtype: Dtype = "bfloat16"

    def peak_rate(self) -> float:
        return self.lr if self.lr is not None else _LR * (_LR_LATENTS / self.latents) ** 0.5

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: never quite 0."""
        rising, falling = self.warmup * self.steps, self.decay * self.steps
        up = min(1.0, (step + 1) / rising) if rising >= 1 else 1.0
        down = min(1.0, (self.steps - step) / falling) if falling >= 1 else 1.0
        return self.peak_rate() * min(up, down)

    def k_at(self, step: int) -> int:
        reached = self.anneal * self.steps
        if self.k_start is None or step >= reached:
            return self.k
        return round(self.k_start + (self.k - self.k_start) * step / reached)

    def idle_rows(self) -> int:
        """Rows without a code after which a latent is dead."""
        return self.dead_after if self.dead_after is not None else max(1, self.steps * self.batch // 20)

    def exclusive_latents(self) -> int:
        """For each of the two models."""
        return round(self.exclusive * self.latents / 2)

    def objective(self, step: int, models: int, d: int, spread: tuple[float, ...]) -> Objective:
        return Objective(
            models=models,
            kind=self.kind,
            code_norm=self.code_norm if models == 2 else "none",
            k=self.k_at(step),
            l1=self.l1,
            delta=self.delta,
            aux_alpha=self.aux_alpha,
            aux_k=self.aux_k if self.aux_k is not None else max(1, d // 2),
            spread=spread,
        )


def check(training: Training, models: int, d: int) -> None:
    """Raises with all that is wrong."""
    problems = [*_sizes(training, models, d), *_shares(training), *_forms(training, models)]
    if problems:
        raise ConfigErrors(problems)


def _sizes(t: Training, models: int, d: int) -> Iterator[str]:
    if models not in (1, 2):
        yield f"a dictionary is of one model (an SAE) or two (a crosscoder), not {models}"
    least = {"latents": 2, "batch": 1, "steps": 1, "sample": 2, "validate": 0, "seed": 0}
    for name, lowest in {**least, "dead_after": 1, "aux_k": 1, "patience": 1, "k_start": 1}.items():
        value = getattr(t, name)
        if value is not None and value < lowest:
            yield f"{name} is {value}: {lowest} or more"
    for name in ("k", "k_start"):
        value = getattr(t, name)
        if value is not None and not 1 <= value <= t.latents:
            yield f"{name} is {value}: from 1 to the number of latents, {t.latents}"
    if d < 1:
        yield f"hidden states of {d} dimensions"
    # A batch that cannot give every latent a code teaches most of them nothing.
    if t.kind == "batch_topk" and t.batch * t.steps * t.k < t.latents:
        yield f"{t.steps} steps of {t.batch} rows with {t.k} codes each cannot reach {t.latents} latents: train for longer"


def _shares(t: Training) -> Iterator[str]:
    for name in ("warmup", "decay", "anneal", "exclusive"):
        value = getattr(t, name)
        if not 0 <= value <= 1:
            yield f"{name} is {value}: a share from 0 to 1"
    for name in ("aux_alpha", "l1", "delta"):
        value = getattr(t, name)
        if not 0 <= value < float("inf"):
            yield f"{name} is {value}: 0 or more"
    if t.lr is not None and not 0 < t.lr < float("inf"):
        yield f"lr is {t.lr}: more than 0"


def _forms(t: Training, models: int) -> Iterator[str]:
    known = {"kind": KINDS, "code_norm": CODE_NORMS, "dtype": get_args(Dtype), "bias": get_args(Bias)}
    for name, words in known.items():
        if getattr(t, name) not in words:
            yield f"{name} is '{getattr(t, name)}': one of {', '.join(words)}"
    if models == 1 and (t.delta or t.exclusive):
        yield "delta and exclusive are of crosscoders, which read two models: here is one"
    if models == 2 and t.kind == "relu" and t.code_norm == "none":
        yield "an L1 term that does not weigh the decoder's norm is escaped by a larger decoder: choose another code_norm"
