"""The card of `feature_rates`: which features of a pretrained SAE fire more or less often than in the base."""

from __future__ import annotations

from dataclasses import dataclass

from finetrace.core.card import Method, Needs
from finetrace.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """sae: a folder, a .safetensors file or a hub id (org/repo/subfolder@revision) of a sparse autoencoder that was trained on
    hidden states of the base; without one there is nothing to run. Finetrace's own files, SAELens's and dictionary_learning's are
    read.

    layer: the block whose output it reads, as a number (0 the first) or relative from 0.0 to 1.0; null for the one that its folder
    names. scale: what hidden states are multiplied by before it reads them, where its folder asks for a factor and does not
    hold it.

    skip: so many first tokens of each text are left out. template: what the chat template adds counts too. q: share of the
    features called changed that may be so by chance.

    shown: features that are read as words and looked up in the texts. tokens: words of each. passages: texts of each.
    """

    sae: str = ""
    layer: int | float | None = None
    scale: float | None = None
    skip: int = 1
    template: bool = False
    q: float = 0.05
    shown: int = 10
    tokens: int = 12
    passages: int = 2

    def __post_init__(self) -> None:
        name = "feature_rates"
        if isinstance(self.layer, float) and not 0.0 <= self.layer <= 1.0:
            raise BadInput(
                f"{name}.layer is {self.layer}; a relative layer lies between 0.0 (first) and 1.0 (last)."
            )
        if not 0.0 < self.q < 1.0:
            raise BadInput(f"{name}.q is {self.q}; it is a share, more than 0 and less than 1.")
        if self.scale is not None and self.scale <= 0:
            raise BadInput(f"{name}.scale is {self.scale}; it is more than 0.")
        if self.skip < 0 or self.shown < 1 or self.tokens < 1 or self.passages < 0:
            raise BadInput(f"{name} needs skip >= 0, shown >= 1, tokens >= 1 and passages >= 0.")


KEYS = (
    ("turnover", "share of firings"),
    ("changed_share", "share of features"),
    ("codes_base", "features/token"),
    ("codes_tuned", "features/token"),
    ("unexplained_base", "share"),
    ("unexplained_tuned", "share"),
)


def _needs(config: Config) -> Needs:
    if not config.sae:
        raise BadInput(
            "feature_rates needs a pretrained SAE of the base: name its folder or hub id, --set feature_rates.sae=FOLDER, or "
            "diffing.method.sae=FOLDER in a run by name."
        )
    return Needs(layers=() if config.layer is None else (config.layer,), steps=True, floor=True)


METHOD = Method(
    name="feature_rates",
    version=1,
    summary="Which features of a pretrained SAE fire more or less often than in the base: paired over texts, with FDR.",
    config=Config,
    needs=_needs,
    primary="turnover",
    keys=KEYS,
    levels=("codes_base", "codes_tuned", "unexplained_base", "unexplained_tuned"),
    papers=(
        "Bricken et al. 2023 (Towards monosemanticity)",
        "Benjamini & Hochberg 1995",
        "Tango 1998 (difference of paired proportions)",
    ),
)
