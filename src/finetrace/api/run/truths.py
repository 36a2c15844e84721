"""What is known of an organism: in words, as the tiny world's manifest, and beside all others of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetrace.api.names import is_bundled
from finetrace.config import catalogue
from finetrace.config.tree import RunConfig

__all__ = ["manifest_of", "truth_of", "truths_for"]


def truth_of(config: RunConfig) -> str:
    """What was planted, in words, on one line; empty where nothing is said."""
    return " ".join(config.organism.description_long.split())


def manifest_of(config: RunConfig) -> Mapping[str, Any] | None:
    """The tiny world's own truth of what was run."""
    source = config.variant.source
    if source is None or not is_bundled(source):
        return None
    from finetrace.organisms import bundled

    name = source.partition("/")[2]
    return bundled.truth(name) if name else None


def truths_for(config: RunConfig) -> dict[str, str]:
    """What was planted in every organism of the catalogue, this run's own among them; controls have nothing."""
    found = {one.name: one.description_long for one in catalogue.organisms() if not one.control}
    return found | {config.organism.name: config.organism.description_long}
