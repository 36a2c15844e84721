"""What is on this machine already, looked up without asking the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetrace.api.names import is_bundled
from finetrace.core.errors import ModelError
from finetrace.data.sources import DataSource

__all__ = ["data_held", "held"]


def held(source: str, revision: str | None = None) -> bool:
    """Whether a checkpoint's weights are here: a folder, a bundled model, or whole in the hub's local cache."""
    from finetrace.models.files import weight_files
    from finetrace.models.source import Source, kind_of

    if is_bundled(source) or Path(source).expanduser().exists():
        return True
    place, _, own = source.partition("@")
    parts = place.split("/")
    root = _snapshot("/".join(parts[:2]), own or revision, "model")
    if root is None:
        return False
    folder = root.joinpath(*parts[2:])
    try:
        return bool(weight_files(Source(source, folder, kind_of(folder, source))))
    except ModelError:
        return False


def data_held(data: Any) -> bool:
    """Whether the texts can be read without fetching any."""
    if not isinstance(data, DataSource) or data.path is not None:
        return True
    return _snapshot("/".join(data.id.split("/")[:2]), data.revision, "dataset") is not None


def _snapshot(repo: str, revision: str | None, kind: str) -> Path | None:
    """The folder of a repository in the local cache, if it has been fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, repo_type=kind, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
