"""The card of `crosscoder`: one dictionary for both models, and which of its latents only one of them has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetrace.core.card import Method, Needs
from finetrace.core.dictionaries import course, problems
from finetrace.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """layer: relative, 0 the first and 1 the last. expansion: latents, as times the width of the hidden states; latents: their
    number, in place of that. k: codes a token keeps on average, at most a quarter of the width. kind: batch_topk, or relu,
    whose codes an L1 term of weight l1 keeps few. code_norm: by which of a latent's decoder norms codes are compared.

    delta: weight of the loss on tuned - base. exclusive: share of latents that may write into one model only, half of them
    into each. Both 0 is a plain crosscoder.

    steps: of training, null for as many as `epochs` readings of the tokens take, at least 1,000 (fewer where there are few
    tokens) and at most 20,000. batch: tokens a step, fewer where there are few. lr: the
    highest learning rate, null for one by the number of latents. held: share of the texts that are kept from
    training; figures and latent scaling are of them. template: whether tokens that the chat template adds count too.
    memory: MiB of hidden states that are held rather than read again for every epoch.

    shown: latents that are read as words and looked up in the texts. tokens: words of each. passages: texts of each, and of
    each range of strength. labels: how many of them, the first, are labelled by a model that `--judge label=MODEL` names; of
    the pair alone. examples: so many texts of every latent, and of each range of its strength, are kept in an SQLite file
    beside the result, for each contrast. keep: the dictionary is saved there.
    """

    layer: float = 1.0
    expansion: int = 2
    latents: int | None = None
    k: int = 16
    kind: Literal["batch_topk", "relu"] = "batch_topk"
    l1: float = 0.1
    code_norm: Literal["crosscoder", "sae", "mixed", "decoupled"] = "crosscoder"
    delta: float = 4.0
    exclusive: float = 0.1
    steps: int | None = None
    epochs: float = 4.0
    batch: int = 1024
    lr: float | None = None
    held: float = 0.25
    template: bool = False
    memory: int = 512
    shown: int = 8
    tokens: int = 12
    passages: int = 2
    labels: int = 0
    examples: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        if wrong := [*problems(self), *_own(self)]:
            raise BadInput(f"crosscoder needs {', '.join(wrong)}.")


def _own(config: Config) -> Iterator[str]:
    if not 0.0 <= config.exclusive < 1.0:
        yield f"exclusive from 0 and below 1, a share of the latents, not {config.exclusive}"
    if config.code_norm not in ("crosscoder", "sae", "mixed", "decoupled"):
        yield f"code_norm crosscoder, sae, mixed or decoupled, not '{config.code_norm}'"
    if config.delta < 0:
        yield "delta >= 0"
    if config.lr is not None and config.lr <= 0:
        yield "lr > 0"


KEYS = (
    ("explained_change", "of the base's variance"),
    ("explained_share", "share"),
    ("latents_share", "share"),
    ("tuned_only_share", "share"),
    ("base_share", "share"),
    ("tuned_share", "share"),
    ("codes_per_token", "codes"),
)

METHOD = Method(
    name="crosscoder",
    version=1,
    summary="One sparse dictionary of both models: latents that only one has, checked by latent scaling, words and passages.",
    config=Config,
    needs=lambda config: Needs(layers=(config.layer,), steps=True, dosed=False, labels=config.labels),
    primary="explained_change",
    keys=KEYS,
    work=lambda config, tokens, d: course(config, round(tokens * (1 - config.held)), d).products(2, d),
    papers=(
        "Lindsey et al. 2024 (Sparse crosscoders for cross-layer features and model diffing)",
        "Minder et al. 2025 (Robustly identifying concepts introduced during chat fine-tuning using crosscoders)",
        "Bussmann et al. 2024 (BatchTopK sparse autoencoders)",
        "nostalgebraist 2020 (logit lens)",
    ),
)
