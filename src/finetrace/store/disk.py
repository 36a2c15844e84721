"""Whether something will fit on the disk, before it is begun and when it did not."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetrace.core.errors import BadInput

__all__ = ["check_room", "no_room", "writing"]

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def check_room(folder: Path, needed: int, what: str) -> None:
    """BadInput if the disk of `folder` has fewer than `needed` bytes free."""
    if _free(folder) < needed:
        raise no_room(folder, needed, what)


@contextmanager
def writing(folder: Path, needed: int, what: str, then: str = "") -> Iterator[None]:
    """An OSError inside, which writes about `needed` bytes below `folder`, becomes a BadInput that says what to do. then:
    what becomes of what was written before."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(folder, needed, what, then) from None
        raise BadInput(f"{what} cannot be written to {folder}: {error}.") from None


def no_room(folder: Path, needed: int, what: str, then: str = "") -> BadInput:
    """The error for a full disk. needed: 0 where that is not known."""
    needs = f"needs {_size(needed)}" if needed else "cannot be written"
    return BadInput(
        f"The disk is full: {what} {needs}, and {folder} has {_size(_free(folder))} free. Free some space or name another "
        f"folder.{then}"
    )


def _free(folder: Path) -> int:
    """Bytes; of the nearest folder above where there is none yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
