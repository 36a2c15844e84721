"""Checkpoints by hub id: found in the client's cache, pinned to a commit, and one clear line where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.hub import Hub, fake_hub

from finetrace.core.errors import ModelError
from finetrace.models import resolve
from finetrace.models.source import located, one_line

TOKEN = "hf_" + "Q7" * 17


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return fake_hub(tmp_path, monkeypatch)


def checkpoint(folder: Path, mark: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"mark": mark}))
    return folder


def mark_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["mark"]


def test_subfolders_and_revisions_of_one_repository(hub: Hub, tmp_path: Path) -> None:
    first = hub.add("org/repo", checkpoint(tmp_path / "a", "a"), subfolder="deep/er")
    second = hub.add("org/repo", checkpoint(tmp_path / "b", "b"), subfolder="other")
    tagged = hub.add("org/repo", checkpoint(tmp_path / "c", "c"), revision="v1.0")
    branch = hub.add("org/repo", checkpoint(tmp_path / "d", "d"), revision="refs/pr/3")
    assert len({first, second, tagged, branch}) == 4
    found = resolve("org/repo/deep/er")
    assert mark_of(found.folder) == "a"
    assert found.revision == second
    assert mark_of(resolve("org/repo/other").folder) == "b"
    assert resolve("org/repo/deep/er", revision=first).revision == first
    assert resolve("org/repo", revision="v1.0").revision == tagged
    assert resolve("org/repo@v1.0").revision == tagged
    assert resolve("org/repo@refs/pr/3").revision == branch
    assert resolve(f"org/repo/deep/er@{first}").revision == first
    assert resolve("org/repo@v1.0", revision="v1.0").name == "org/repo@v1.0"
    with pytest.raises(ModelError, match="another revision beside it, 'v2'"):
        resolve("org/repo@v1.0", revision="v2")


def test_what_the_cache_lacks(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/repo", checkpoint(tmp_path / "a", "a"), subfolder="one")
    says = "HF_HUB_OFFLINE is set.*org/other is not whole in its local cache"
    with pytest.raises(ModelError, match=says):
        resolve("org/other/sub")
    with pytest.raises(ModelError, match=r"at revision 'v9'.*`hf download org/repo`"):
        resolve("org/repo/one", revision="v9")
    with pytest.raises(ModelError, match="fetched before has no folder 'two'"):
        resolve("org/repo/two")


def test_a_local_folder_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/repo", checkpoint(tmp_path / "a", "hub"))
    checkpoint(tmp_path / "org" / "repo", "here")
    assert mark_of(resolve("org/repo").folder) == "hub"
    monkeypatch.chdir(tmp_path)
    assert mark_of(resolve("org/repo").folder) == "here"
    assert resolve("org/repo").revision is None


def refusing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fetch(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)


def http_error(name: str, status: int, message: str = "no") -> Any:
    """One of the client's own errors, with the response that it would come from."""
    from huggingface_hub import errors

    # Whichever HTTP library the hub's client is built on.
    http: Any = import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    request = http.Request("GET", "https://huggingface.co/api/models/org/repo")
    return getattr(errors, name)(message, response=http.Response(status, request=request))


def wrapped(error: BaseException) -> BaseException:
    """As the client raises it where its cache cannot help either."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    outer = LocalEntryNotFoundError("nothing in the cache")
    outer.__cause__ = error
    return outer


Made = Callable[[], BaseException]


@pytest.mark.parametrize("token", [None, TOKEN], ids=["no token", "a token"])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            lambda: http_error("GatedRepoError", 401),
            ["org/repo is gated", "accept its terms at https://huggingface.co/org/repo", "hf auth login", "HF_TOKEN"],
        ),
        (lambda: http_error("GatedRepoError", 403), ["org/repo is gated"]),
        (lambda: wrapped(http_error("GatedRepoError", 403)), ["org/repo is gated"]),
        (
            lambda: http_error("RepositoryNotFoundError", 401),
            ["no hub repository 'org/repo'", "if it is private, log in with `hf auth login` or set HF_TOKEN"],
        ),
        (
            lambda: wrapped(http_error("HfHubHTTPError", 403)),
            ["does not let this account read org/repo", "https://huggingface.co/org/repo", "hf auth login"],
        ),
        (lambda: http_error("RevisionNotFoundError", 404), ["org/repo has no revision 'v9'"]),
        (lambda: wrapped(ConnectionError("down")), ["the hub cannot be reached", "org/repo is not whole"]),
        (lambda: http_error("HfHubHTTPError", 500, "over\nmany\nlines"), ["org/repo could not be fetched"]),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line(
    made: Made, says: list[str], token: str | None, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    refusing(monkeypatch, made())
    with pytest.raises(ModelError) as caught:
        resolve("org/repo/sub", revision="v9")
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    for part in says:
        assert part in text
    if "HF_TOKEN" in text:
        assert ("a token is set" in text) == (token is not None)
    assert caught.value.__suppress_context__


def test_no_token_in_what_the_client_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        one_line(ValueError(f"refused {TOKEN}\nBearer {TOKEN} Bearer x.y-z")) == "refused … Bearer … Bearer …"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    refusing(monkeypatch, OSError(f"GET https://user:{TOKEN}@host failed"))
    with pytest.raises(ModelError, match="could not be fetched") as caught:
        resolve("org/repo")
    assert TOKEN not in str(caught.value)


def test_no_weights_where_only_a_tokenizer_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert located("org/repo")[0] == tmp_path
    assert asked["repo"] == "org/repo"
    assert not any("safetensors" in pattern for pattern in asked["allow_patterns"])
    (tmp_path / "config.json").write_text("{}")
    resolve("org/repo")
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.py" not in asked["allow_patterns"]
    resolve("org/repo", code=True)
    assert "*.py" in asked["allow_patterns"]
