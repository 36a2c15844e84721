"""One writer at a time, and a killed one leaves no lock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetrace.core.errors import BadInput
from finetrace.store import lock
from finetrace.store.lock import alone


def test_a_second_writer_is_told_who_writes(tmp_path):
    path = tmp_path / "deep" / ".lock"
    with (
        alone(path, "The cache"),
        pytest.raises(BadInput, match=f"The cache is being written by process {os.getpid()} on "),
        alone(path, "The cache"),
    ):
        pass
    assert not path.exists()
    with alone(path, "The cache"):
        assert path.exists()


def test_a_killed_writer_leaves_no_lock(tmp_path):
    path = tmp_path / ".lock"
    held = _holder(path)
    with pytest.raises(BadInput, match=f"process {held.pid}"), alone(path, "It"):
        pass
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert path.exists(), "the file is left, the lock is not"
    with alone(path, "It"):
        pass


def test_a_file_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    import fcntl

    flock, path, calls = fcntl.flock, tmp_path / ".lock", []

    def late(handle, how):
        calls.append(how)
        flock(handle, how)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr("fcntl.flock", late)
    with alone(path, "It"):
        assert path.exists()
    assert len(calls) == 2


def test_where_there_are_no_locks_the_file_is_one(tmp_path, monkeypatch):
    """A lock whose owner is gone is said to be, and never taken over."""

    def unsupported(handle, how):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr("fcntl.flock", unsupported)
    path = tmp_path / ".lock"
    with alone(path, "It"):
        with pytest.raises(BadInput, match="wait until it is done"), alone(path, "It"):
            pass
        assert path.exists()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(f"{gone.pid} {lock.socket.gethostname()}\n")
    with pytest.raises(BadInput, match=r"no longer runs: delete .*\.lock"), alone(path, "It"):
        pass
    assert path.exists()


def test_a_system_without_kernel_locks_has_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / ".lock"
    with alone(path, "It"):
        with pytest.raises(BadInput, match="wait until it is done"), alone(path, "It"):
            pass
        assert path.exists()
    assert not path.exists()


def _holder(path: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock until it is killed."""
    code = (
        "import sys; from pathlib import Path; from finetrace.store.lock import alone\n"
        "with alone(Path(sys.argv[1]), 'It'):\n    print('held', flush=True); sys.stdin.read()"
    )
    source = str(Path(lock.__file__).parents[2])
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    return held
