"""What the methods that train a dictionary are asked for: the options they share, and which of their values make no sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Course", "Options", "course", "problems"]

_FEWEST_STEPS, _MOST_STEPS = 1000, 20000
_FEWEST_BATCHES, _SMALL_BATCH = 16, 64


class Options(Protocol):
    """See the methods' own `Config`, which have these fields and more. Cards load this module, and so it lies in the core."""

    @property
    def layer(self) -> float: ...
    @property
    def expansion(self) -> int: ...
    @property
    def latents(self) -> int | None: ...
    @property
    def k(self) -> int: ...
    @property
    def kind(self) -> Literal["batch_topk", "relu"]: ...
    @property
    def l1(self) -> float: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def epochs(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def held(self) -> float: ...
    @property
    def template(self) -> bool: ...
    @property
    def memory(self) -> int: ...
    @property
    def shown(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def passages(self) -> int: ...
    @property
    def labels(self) -> int: ...
    @property
    def examples(self) -> int: ...
    @property
    def keep(self) -> bool: ...


def problems(options: Options) -> Iterator[str]:
    """What is needed and is not so, each as the end of "sae_difference needs ..."."""
    if not 0.0 <= options.layer <= 1.0:
        yield f"layer from 0 (first) to 1 (last), not {options.layer}"
    if not 0.0 < options.held < 1.0:
        yield f"held above 0 and below 1, a share of the texts, not {options.held}"
    if options.kind not in ("batch_topk", "relu"):
        yield f"kind batch_topk or relu, not '{options.kind}'"
    counts = (
        ("expansion", options.expansion, 1), ("k", options.k, 1), ("batch", options.batch, 2),
        ("memory", options.memory, 1), ("shown", options.shown, 1), ("tokens", options.tokens, 1),
        ("passages", options.passages, 0), ("l1", options.l1, 0), ("latents", options.latents, 2),
        ("steps", options.steps, 1), ("labels", options.labels, 0), ("examples", options.examples, 0),
    )  # fmt: skip
    for name, value, lowest in counts:
        if value is not None and value < lowest:
            yield f"{name} >= {lowest}"
    if options.labels > options.shown:
        yield f"labels of at most the {options.shown} latents that are shown, not of {options.labels}"
    if options.epochs <= 0:
        yield "epochs > 0"


@dataclass(frozen=True)
class Course:
    """The size of a training: latents, tokens a step, steps at most."""

    latents: int
    batch: int
    steps: int

    def products(self, models: int, d: int) -> float:
        """Multiplications of it: for every token and latent the code, what it writes, and the gradients of both and between
        them, five products of a vector of `models` x `d`."""
        return 5.0 * models * d * self.latents * self.batch * self.steps


def course(options: Options, rows: int, d: int) -> Course:
    """What is asked for, as far as there are tokens for it. rows: tokens to train on; d: width of the hidden states."""
    batch = min(options.batch, rows, max(_SMALL_BATCH, rows // _FEWEST_BATCHES))
    wanted, fewest = round(options.epochs * rows / max(1, batch)), min(_FEWEST_STEPS, 2 * rows)
    return Course(
        latents=max(2, min(options.latents or options.expansion * d, rows)),
        batch=batch,
        steps=options.steps or min(max(wanted, fewest), _MOST_STEPS),
    )
