"""What an observer may know before the first step; never which contrast it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from finetrace.models import Pair, Vocabulary, spell


class Lens(Protocol):
    """Residual vectors [row, d_model] read through each side's own final norm and head: (base, other), float32
    [row, vocab], on the CPU.

    direction: they are differences, read without shift, bias or cap, so that lens(-v) = -lens(v). Otherwise states.
    """

    def __call__(
        self, vectors: Float[Tensor, "row d_model"], direction: bool = True
    ) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "row vocab"]]: ...


@dataclass(frozen=True)
class Subject:
    """slices: the names that `Step.slice` indexes. spell: token ids to their texts, one string a token. words: makes
    the shared vocabulary. lens: may be called in `result()`, while the models are open."""

    slices: tuple[str, ...]
    n_layers: int
    d_model: int
    vocab_size: int
    seed: int
    spell: Callable[[list[int]], tuple[str, ...]]
    words: Callable[[], Vocabulary]
    lens: Lens

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that both models share, one entry a column of the logits."""
        return self.words()


def make_subject(pair: Pair, slices: tuple[str, ...], side: str, seed: int) -> Subject:
    """The subject of the contrast of the base with `side`."""

    def lens(vectors: Tensor, direction: bool = True) -> tuple[Tensor, Tensor]:
        base, other = (pair.lens(name, vectors, direction=direction) for name in ("base", side))
        return base, other

    return Subject(
        slices=slices,
        n_layers=pair.n_layers,
        d_model=pair.d_model,
        vocab_size=pair.vocab_size,
        seed=seed,
        spell=lambda ids: spell(pair.tokenizer, ids),
        words=lambda: pair.vocabulary,
        lens=lens,
    )
