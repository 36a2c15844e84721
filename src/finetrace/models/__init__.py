"""Pairs of models, loaded once and read as one object."""

from finetrace.models.adapters import Fit
from finetrace.models.architecture import Hidden, layer_index
from finetrace.models.head import Head
from finetrace.models.opening import open_pair
from finetrace.models.pair import Pair, Side
from finetrace.models.preflight import preflight
from finetrace.models.probe import check_head
from finetrace.models.source import Source, resolve
from finetrace.models.words import Vocabulary, spell

__all__ = [
    "Fit",
    "Head",
    "Hidden",
    "Pair",
    "Side",
    "Source",
    "Vocabulary",
    "check_head",
    "layer_index",
    "open_pair",
    "preflight",
    "resolve",
    "spell",
]
