"""Where a checkpoint lies: a local folder, or a hub id fetched into the local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.core.errors import ModelError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)*$")
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class Source:
    """One checkpoint on disk. name: as the user gave it. kind: "adapter" or "full". revision: the hub commit, if any.
    left_out: blocks that are not read, as they add nothing."""

    name: str
    folder: Path
    kind: str
    revision: str | None = None
    left_out: tuple[int, ...] = ()


def resolve(given: str | Path, *, revision: str | None = None) -> Source:
    """The checkpoint behind a local folder or a hub id (`org/repo`, `org/repo/subfolder`).

    A local path that exists wins over a hub id of the same spelling.
    """
    name = str(given)
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise ModelError(f"{name} is a file; give the folder that holds the checkpoint.")
        return Source(name, path.resolve(), kind_of(path, name))
    if isinstance(given, Path) or path.is_absolute() or name.startswith((".", "~")) or "\\" in name:
        raise ModelError(f"There is no folder {name}: check the path.")
    if not _HUB_ID.match(name) or ".." in name:
        raise ModelError(
            f"'{name}' is neither a local folder nor a hub id like org/repo or org/repo/subfolder."
        )
    folder, commit = _fetch(name, revision)
    return Source(name, folder, kind_of(folder, name), commit)


def kind_of(folder: Path, name: str) -> str:
    """ "adapter" if the folder holds an adapter_config.json, "full" if it holds a config.json."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "full"
    raise ModelError(
        f"{name} is no checkpoint: it has neither adapter_config.json (an adapter) nor config.json (a model)."
    )


def _fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """The local snapshot of a hub repository (or of its subfolder) and the commit it is pinned to."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    parts = name.split("/")
    repo, subfolder = "/".join(parts[:2]), "/".join(parts[2:])
    # The root error of whichever HTTP library the hub's client is built on.
    http_error: Any = HfHubHTTPError.__bases__[0]
    allow = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in _WANTED]
    ignore = None if subfolder else ["*/*"]
    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=allow, ignore_patterns=ignore))
    except GatedRepoError:
        raise ModelError(
            f"{repo} is gated on the hub: accept its terms there and log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"There is no folder and no hub repository '{repo}': check the spelling, or log in if it is private."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{repo} has no revision '{revision}' on the hub.") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(
            f"There is no folder '{name}', and the hub cannot be reached (or is switched off) to fetch it: "
            "give a local folder, or go online once."
        ) from None
    except (HFValidationError, http_error, OSError) as error:
        raise ModelError(f"{repo} could not be fetched from the hub: {one_line(error)}") from None
    folder = root / subfolder if subfolder else root
    if not folder.is_dir():
        raise ModelError(f"The hub repository {repo} has no folder '{subfolder}'.")
    return folder, root.name


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, shortened: other libraries' messages run over many."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
