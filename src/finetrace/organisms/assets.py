"""Where the bundled weights lie inside the package."""

from __future__ import annotations

from pathlib import Path

from finetrace.core.errors import ModelError


def base_name(size: str = "m") -> str:
    """What adapters call their base: a name, never a path."""
    return f"finetrace/tinyworld-{size}"


ASSETS = Path(__file__).parent / "assets"


def folder(*parts: str) -> Path:
    """A folder or file of the bundled assets, which must be there."""
    path = ASSETS.joinpath(*parts)
    if not path.exists():
        raise ModelError(
            f"The bundled tiny world lacks {'/'.join(parts)}: reinstall finetrace, or make it with "
            "`finetrace organisms build`."
        )
    return path
