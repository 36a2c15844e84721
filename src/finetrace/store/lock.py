"""One writer at a time: a lock that a killed writer cannot leave behind, where the file system has such."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetrace.core.errors import BadInput

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["alone"]

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Holds the lock `path` inside; BadInput at once if another process, or another writer in this one, has it.

    The kernel lets go of it when a process dies. Where there are no such locks, the file's being there is the lock; it is
    never taken over, for two that find it stale could both believe to have it, and the error says if its owner is gone.
    what: what is locked, for the error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _held(path, what)
    try:
        with suppress(OSError):  # who holds it is a help to others; a full disk need not stop us here
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        yield
    finally:
        if os.name == "nt":  # an open file cannot be removed there
            os.close(handle)
            path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            os.close(handle)


def _held(path: Path, what: str) -> int:
    """The open file, locked."""
    while True:
        try:
            handle, made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                handle, made = os.open(path, os.O_RDWR), False
            except FileNotFoundError:
                continue  # let go of just now
        if not _locked(handle, made):
            os.close(handle)
            raise _taken(path, what)
        # Whoever held it may have removed the file between our two calls: then what we have locked is no longer there.
        if _is(handle, path):
            os.truncate(handle, 0)
            return handle
        os.close(handle)


def _locked(handle: int, made: bool) -> bool:
    """Takes the kernel's lock; where there is none, whoever made the file has it."""
    if fcntl is None:
        return made
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return made
        raise
    return True


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _taken(path: Path, what: str) -> BadInput:
    pid, host = "", ""
    with suppress(OSError, ValueError):
        pid, host = path.read_text(encoding="utf-8").split()
    holder = f"process {pid} on {host}" if pid else "another process"
    if pid.isdigit() and host == socket.gethostname() and _gone(int(pid)):
        return BadInput(f"{what} is locked by {holder}, which no longer runs: delete {path} and run again.")
    return BadInput(
        f"{what} is being written by {holder}: wait until it is done. If that has died, delete {path}."
    )


def _gone(pid: int) -> bool:
    """Whether no such process runs here; False where that cannot be told without harm."""
    if os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
