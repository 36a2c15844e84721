"""What a user calls a model: a folder, a hub id, or a bundled name (`tinyworld`, `tinyworld/refusal_erosion`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from finetrace.core.errors import BadInput, unknown

WORLD = "tinyworld"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+){0,8}(@[\w./-]+)?$")


def resolve(source: str) -> str:
    """The source with a bundled name replaced by its folder; an existing folder of that name wins."""
    if Path(source).exists() or not is_bundled(source):
        return source
    from finetrace.organisms import bundled

    _, _, organism = source.partition("/")
    if not organism:
        return str(bundled.base_path())
    if organism not in bundled.names():
        raise unknown("bundled organism", organism, bundled.names())
    return str(bundled.organism_path(organism))


def is_bundled(source: str) -> bool:
    return source == WORLD or source.startswith(f"{WORLD}/")


def bundled_name(source: str) -> str:
    """The bundled name of a folder inside the package, so that a pair opened by `load_pair` is known again."""
    from finetrace.organisms.assets import ASSETS

    path = Path(source)
    if not path.is_relative_to(ASSETS):
        return source
    inside = path.relative_to(ASSETS)
    if inside == Path("base"):
        return WORLD
    return source if len(inside.parts) == 1 else f"{WORLD}/{inside.name}"  # the smaller base has no name


def check_source(role: str, source: str) -> None:
    """Raises BadInput where a source can be seen to be wrong without loading it."""
    path = Path(resolve(source)).expanduser()
    if path.exists():
        if not path.is_dir():
            raise BadInput(
                f"The {role} model {source} is a file; name the folder that holds its config.json."
            )
        if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
            raise BadInput(
                f"The {role} model {source} holds neither config.json (a checkpoint) nor adapter_config.json (an adapter)."
            )
        return
    if source.startswith((".", "/", "~")) or not _HUB_ID.match(source) or ".." in source:
        raise BadInput(f"The {role} model {source} does not exist here and is not a hub id (org/name).")


def short_name(source: str) -> str:
    """How the source is called on the shelf and in the report: a hub id as it is, a folder by its last part."""
    if is_bundled(source):
        return source
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def null_sources(sources: Sequence[str]) -> dict[str, str]:
    """Null name -> source. Names are the sources' last parts; where several hub ids end alike, these ids as they are. All
    must differ."""
    short = [short_name(source) for source in sources]
    last = [name.rsplit("/", 1)[-1] for name in short]
    found: dict[str, str] = {}
    for source, whole, end in zip(sources, short, last, strict=True):
        name = whole if last.count(end) > 1 else end
        if name in found:
            raise BadInput(f"Two nulls are called '{name}' ({found[name]}, {source}): rename one folder.")
        found[name] = source
    return found
