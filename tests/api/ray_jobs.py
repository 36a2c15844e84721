"""What Ray's workers do in tests/api/test_ray.py. Nothing heavy is imported: every worker imports this."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from finetrace.core.errors import ConfigErrors


def job(item: tuple[str, str]) -> str:
    """By what the item says: a result, an error of ours or of nobody's, or death (once, or every time)."""
    what, folder = item
    if what == "wrong":
        raise ConfigErrors(["no such method", "no such organism"])
    if what == "broken":
        raise ZeroDivisionError("a bug")
    if what == "dies" or (what == "dies once" and first_time(Path(folder) / "died")):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{what} is done"


def first_time(flag: Path) -> bool:
    """Whether nobody was here before; remembered on disk, as the one who asks may not live on."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
