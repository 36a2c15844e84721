"""The card of `sae_difference`: what changed in the hidden states, taken apart into few sparse directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetrace.core.card import Method, Needs
from finetrace.core.dictionaries import course, problems
from finetrace.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """layer: relative, 0 the first and 1 the last. expansion: latents, as times the width of the hidden states; latents: their
    number, in place of that. k: codes a token keeps on average, at most a quarter of the width. kind: batch_topk, or relu,
    whose codes an L1 term of weight l1 keeps few.

    steps: of training, null for as many as `epochs` readings of the tokens take, at least 1,000 (fewer where there are few tokens) and at most 20,000. batch:
    tokens a step, fewer where there are few. held: share of the texts that are kept from training; all figures are of them.
    The first token of each text is left out; template: whether tokens that the chat template adds count. memory: MiB of hidden
    states that are held rather than read again for every epoch.

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
    steps: int | None = None
    epochs: float = 4.0
    batch: int = 1024
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
        if wrong := [*problems(self)]:
            raise BadInput(f"sae_difference needs {', '.join(wrong)}.")


KEYS = (
    ("explained_change", "of the base's variance"),
    ("explained_share", "share"),
    ("latents_share", "share"),
    ("codes_per_token", "codes"),
)

METHOD = Method(
    name="sae_difference",
    version=1,
    summary="What changed in the hidden states, taken apart by a sparse autoencoder: latents, words and passages.",
    config=Config,
    needs=lambda config: Needs(layers=(config.layer,), steps=True, dosed=False, labels=config.labels),
    primary="explained_change",
    keys=KEYS,
    work=lambda config, tokens, d: course(config, round(tokens * (1 - config.held)), d).products(1, d),
    papers=(
        "Bussmann et al. 2024 (BatchTopK sparse autoencoders)",
        "Minder et al. 2025 (latent scaling)",
        "nostalgebraist 2020 (logit lens)",
    ),
)
