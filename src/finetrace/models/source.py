"""Where a checkpoint lies: a local folder, or a hub id fetched into the local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.core.errors import ModelError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)*(@[\w./-]+)?$")
_CODE = ("*.py",)
_DESCRIBED = ("*.json", "*.jinja", "*.model", "*.txt")
_WANTED = (*_DESCRIBED, "*.safetensors")
_FORBIDDEN = (401, 403)
# What a message of the hub's client could carry that is nobody's business: tokens, and headers that hold one.
_SECRET = re.compile(r"hf_[A-Za-z0-9]{6,}|api_org_[A-Za-z0-9]{6,}|(?<=[Bb]earer )\S+")


@dataclass(frozen=True)
class Source:
    """One checkpoint on disk. name: as the user gave it. kind: "adapter" or "full". revision: the hub commit, if any.
    left_out: blocks that are not read, as they add nothing."""

    name: str
    folder: Path
    kind: str
    revision: str | None = None
    left_out: tuple[int, ...] = ()


def resolve(given: str | Path, *, revision: str | None = None, code: bool = False) -> Source:
    """The checkpoint behind a local folder or a hub id (`org/repo`, `org/repo/subfolder`).

    A local path that exists wins over a hub id of the same spelling. revision: a branch, tag or commit, which a hub id may
    also bring with it (`org/repo/subfolder@revision`). code: fetch the code that it brings too.
    """
    name = str(given)
    folder, commit = located(given, revision=revision, wanted=(*_WANTED, *_CODE) if code else _WANTED)
    return Source(name, folder, kind_of(folder, name), commit)


def located(
    given: str | Path, *, revision: str | None = None, wanted: tuple[str, ...] = _DESCRIBED
) -> tuple[Path, str | None]:
    """The local folder behind a path or hub id, and the commit if it is one of the hub. wanted: the files to fetch, by
    pattern; no weights unless they are named."""
    name = str(given)
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise ModelError(f"{name} is a file; give the folder that holds the checkpoint.")
        return path.resolve(), None
    if isinstance(given, Path) or path.is_absolute() or name.startswith((".", "~")) or "\\" in name:
        raise ModelError(f"There is no folder {name}: check the path.")
    if not _HUB_ID.match(name) or ".." in name:
        raise ModelError(
            f"'{name}' is neither a local folder nor a hub id like org/repo or org/repo/subfolder."
        )
    place, _, own = name.partition("@")
    if own and revision not in (None, own):
        raise ModelError(f"{name} was given with another revision beside it, '{revision}': name one of them.")
    return _fetch(place, own or revision, wanted)


def kind_of(folder: Path, name: str) -> str:
    """ "adapter" if the folder holds an adapter_config.json, "full" if it holds a config.json."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "full"
    raise ModelError(
        f"{name} is no checkpoint: it has neither adapter_config.json (an adapter) nor config.json (a model)."
    )


def _fetch(name: str, revision: str | None, wanted: tuple[str, ...]) -> tuple[Path, str]:
    """The local snapshot of a hub repository (or of its subfolder) and the commit it is pinned to."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    parts = name.split("/")
    repo, subfolder = "/".join(parts[:2]), "/".join(parts[2:])
    # The root error of whichever HTTP library the hub's client is built on.
    http_error: Any = HfHubHTTPError.__bases__[0]
    allow = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in wanted]
    ignore = None if subfolder else ["*/*"]
    offline = constants.HF_HUB_OFFLINE
    try:
        root = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=allow,
                ignore_patterns=ignore,
                local_files_only=offline,
            )
        )
    except (HFValidationError, http_error, OSError) as error:
        raise ModelError(_refusal(error, name, repo, revision, offline)) from None
    folder = root / subfolder if subfolder else root
    if not folder.is_dir():
        where = "The part of it that was fetched before" if offline else f"The hub repository {repo}"
        fix = ": unset HF_HUB_OFFLINE once to fetch it, or check the spelling" if offline else ""
        raise ModelError(f"{where} has no folder '{subfolder}'{fix}.")
    return folder, root.name


def _refusal(error: BaseException, name: str, repo: str, revision: str | None, offline: bool) -> str:
    """One line for what the hub's client raised: which repository, why, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page, at = f"https://huggingface.co/{repo}", f" at revision '{revision}'" if revision else ""
    causes = _causes(error)
    if any(isinstance(one, GatedRepoError) for one in causes):
        return f"{repo} is gated on the hub: accept its terms at {page}, then {_log_in()}"
    if any(isinstance(one, RevisionNotFoundError) for one in causes):
        return f"{repo} has no revision '{revision}' on the hub: see {page}/commits/main."
    if any(isinstance(one, RepositoryNotFoundError) for one in causes):
        return f"There is no folder and no hub repository '{repo}': check the spelling; if it is private, {_log_in()}"
    if any(_status(one) in _FORBIDDEN for one in causes):
        return f"The hub does not let this account read {repo}: ask for access at {page}, then {_log_in()}"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        why = " (HF_HUB_OFFLINE is set)" if offline else ""
        return (
            f"There is no folder '{name}', and the hub cannot be reached{why}: {repo} is not whole in its local cache"
            f"{at}. Give a local folder, or go online once (`hf download {repo}` fetches it)."
        )
    return f"{repo} could not be fetched from the hub: {one_line(error)}"


def _log_in() -> str:
    """The way to show who one is, and whether one has done so."""
    from huggingface_hub import get_token

    known = " (a token is set: its account has no access)" if get_token() else " (no token is set)"
    return f"log in with `hf auth login` or set HF_TOKEN{known}."


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from: the client wraps what the hub said into what its cache lacks."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of the client carries."""
    response = vars(error).get("response")
    return None if response is None else int(response.status_code)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, shortened and without tokens: other libraries' messages run over many."""
    text = _SECRET.sub("…", " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
