"""What an observer sees: a step (one batch through both models) and logit chunks (some of its tokens)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.engine.divergences import Divergences, Kernel, divergences, top


@dataclass(frozen=True)
class Step:
    """One batch of one contrast, right-padded. Position p is the prediction made at token p of token p + 1.

    row: index in the corpus; key: the row's content hash; keep: has a next token (so padding is out); next_id: that
    token, 0 where there is none; role: of token p itself, see data/roles.py. hidden: layer -> (base, other) after block
    `layer`, [batch, pos, d_model]; only the layers that the method's card asked for.
    """

    row: Int[Tensor, " batch"]
    key: np.ndarray
    slice: Int[Tensor, " batch"]
    ids: Int[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    role: Int[Tensor, "batch pos"]
    position: Int[Tensor, "batch pos"]
    next_id: Int[Tensor, "batch pos"]
    hidden: Callable[[int], tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]]]


class LogitChunk:
    """Some kept tokens of the current step with what their logits say; figures are computed once, when first asked for.

    batch_row: which row of the step each token is in. slice, role, position, ids, next_id: as in `Step`, per token.
    target: the next token's row of the vocabulary that both models share, -1 where they do not share it.
    base_log_probs: float32 [token, vocab]. difference: logits of the other model minus the base's, float32.
    """

    def __init__(
        self,
        step: Step,
        where: tuple[Tensor, Tensor],
        target: Int[Tensor, " token"],
        base_log_probs: Float[Tensor, "token vocab"],
        difference: Float[Tensor, "token vocab"],
        kernel: Kernel | None = None,
    ) -> None:
        self.batch_row, self.position = where
        self.slice = step.slice[self.batch_row]
        self.role = step.role[where]
        self.ids = step.ids[where]
        self.next_id = step.next_id[where]
        self.target = target
        self.base_log_probs = base_log_probs
        self.difference = difference
        self._kernel = kernel

    @cached_property
    def divergences(self) -> Divergences:
        return divergences(self.base_log_probs, self.difference, self._kernel)

    @property
    def kl(self) -> Float[Tensor, " token"]:
        """KL(tuned || base), nats."""
        return self.divergences.kl

    @property
    def reverse_kl(self) -> Float[Tensor, " token"]:
        """KL(base || tuned), nats."""
        return self.divergences.reverse_kl

    @property
    def js(self) -> Float[Tensor, " token"]:
        """Jensen-Shannon divergence, nats, at most log 2."""
        return self.divergences.js

    @cached_property
    def delta_nll(self) -> Float[Tensor, " token"]:
        """NLL of the next token under the other model minus under the base, nats; above 0: the other finds it less
        likely. NaN where the models do not share that token."""
        moved = self.difference.gather(-1, self.target.clamp(min=0)[:, None])[:, 0]
        change = self.divergences.shift - moved
        return change.masked_fill(self.target < 0, float("nan"))

    @cached_property
    def centred_difference(self) -> Float[Tensor, "token vocab"]:
        """Logit difference less its mean over the vocabulary: what softmax can see, up to a constant."""
        return self.difference - self.difference.mean(-1, keepdim=True)

    @cached_property
    def logit_l2(self) -> Float[Tensor, " token"]:
        """L2 norm over the vocabulary of the centred logit difference, logits."""
        return self.centred_difference.norm(dim=-1)

    def promoted(self, k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The k tokens whose centred logit rose most, and by how much; ties go to the lowest id."""
        return top(self.centred_difference, k)

    def suppressed(self, k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The k tokens whose centred logit fell most (values <= 0 for real falls); ties go to the lowest id."""
        values, ids = top(-self.centred_difference, k)
        return -values, ids
