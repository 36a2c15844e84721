"""What the methods that train a dictionary are asked for: the options they share, and which of their values make no sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

__all__ = ["Options", "problems"]


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
