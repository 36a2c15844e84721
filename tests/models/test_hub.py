"""Pairs by hub id: subfolders, revisions and tokenizers of repositories, and no step into the network."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.hub import Hub, fake_hub
from tests.tiny import TEMPLATE, save_base, save_full, save_lora, tiny_tokenizer
from tests.worlds import rows

from finetrace.api.audit import make_ready, run_keys, run_ready
from finetrace.api.names import null_sources
from finetrace.api.opening import open_request
from finetrace.api.request import Request, check
from finetrace.api.run.spec import request_for
from finetrace.api.watch import Watch
from finetrace.config.run import compose_run
from finetrace.core.errors import BadInput, ModelError
from finetrace.models import open_pair

OTHER = TEMPLATE.replace("<end>", "w7 <end>")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """org/base at two revisions, org/lora with two adapters whose folders end alike, and more."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        found = fake_hub(folder, patch)
        base = save_base(folder, "llama")
        found.add("org/base", save_full(folder, base, name="old", seed=9), revision="v1")
        found.add("org/base", base)
        found.add("org/full", save_full(folder, base, name="tuned"))
        for number, place in enumerate(("one", "two")):
            lora = save_lora(folder, base, seed=number, name=f"lora{number}", targets=["q_proj"], scale=0.1)
            found.add("org/lora", lora, subfolder=f"{place}/final")
        calm = save_lora(folder, base, seed=5, name="calm", targets=["q_proj"], scale=0.01)
        found.add("org/lora", calm, subfolder="one/final", revision="early")
        bare = save_base(folder, "llama", name="bare", tokenizer=tiny_tokenizer(template=None))
        found.add("org/bare", bare)
        talks = folder / "talks"
        tiny_tokenizer(template=OTHER).save_pretrained(str(talks))
        found.add("org/talks", talks, subfolder="tokenizer")
        yield found


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What tried to reach the network; it could not."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def request(folder: Path, tuned: str | None = "org/lora/one/final", **fields: Any) -> Request:
    made: dict[str, Any] = {"base": "org/base", "data": rows(6), "methods": ("kl",), "dose": False}
    return Request(tuned=tuned, out=folder, **made | fields)


def test_an_audit_by_ids_is_pinned_and_stays_offline(hub: Hub, alone: list[Any], tmp_path: Path) -> None:
    asked = request(
        tmp_path, nulls=("org/lora/one/final@early", "org/lora/two/final"), tokenizer="org/talks/tokenizer"
    )
    ready = make_ready(asked, check(asked), Watch())
    found = run_ready(ready, Watch())
    assert not alone
    commits = {name: (hub.folder / f"models--org--{name}" / "refs").glob("*") for name in ("base", "lora")}
    refs = {f"{name}@{ref.name}": ref.read_text() for name, held in commits.items() for ref in held}
    facts = found.findings.pair
    assert facts["base_revision"] == refs["base@main"]
    assert facts["tuned_revision"] == refs["lora@main"]
    assert facts["null_revisions"] == {"final@early": refs["lora@early"], "final": refs["lora@main"]}
    manifests = [json.loads(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    pinned = {manifest["contrast"]: manifest["revisions"] for manifest in manifests}
    assert pinned["pair"] == {"base": refs["base@main"], "tuned": refs["lora@main"]}
    by_null = [found for label, found in pinned.items() if label.startswith("null:")]
    assert sorted(one[side] for one in by_null for side in one if side != "base") == sorted(
        [refs["lora@early"], refs["lora@main"]]
    )


def key_of(asked: Request) -> str:
    ready = make_ready(asked, check(asked), Watch())
    ready.opened.pair.release()
    return run_keys(ready)["kl"]


def test_what_moves_the_run_key(hub: Hub, tmp_path: Path) -> None:
    plain = request(tmp_path)
    others = {
        "the same again": plain,
        "the same by its commit": replace(plain, tuned_revision=open_pair("org/base", plain.tuned).source("tuned").revision),
        "the other subfolder": replace(plain, tuned="org/lora/two/final"),
        "an earlier revision": replace(plain, tuned_revision="early"),
        "the base's revision": replace(plain, revision="v1"),
        "a tokenizer": replace(plain, tokenizer="org/talks/tokenizer"),
        "a template": replace(plain, chat_template=OTHER.replace("w7", "w8")),
        "thinking": replace(plain, thinking=True),
    }  # fmt: skip
    keys = {name: key_of(asked) for name, asked in others.items()}
    assert keys.pop("the same by its commit") == keys["the same again"]
    assert len(set(keys.values())) == len(keys)


def test_nulls_that_end_alike_are_told_apart() -> None:
    alike = ["org/lora/one/final", "org/lora/two/final", "org/calm"]
    assert null_sources(alike) == {
        "org/lora/one/final": alike[0],
        "org/lora/two/final": alike[1],
        "calm": alike[2],
    }
    with pytest.raises(BadInput, match="Two nulls are called 'org/calm'"):
        null_sources(["org/calm", "org/calm"])


def test_a_tokenizer_by_id_reaches_both_sides(hub: Hub, tmp_path: Path) -> None:
    pair = open_pair("org/bare", "org/full", tokenizer="org/talks/tokenizer")
    assert pair.tokenizer.chat_template == OTHER
    assert pair.side_tokenizer("tuned") is pair.tokenizer
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    given = open_pair("org/bare", "org/full", chat_template=str(tmp_path / "template.jinja"))
    assert given.tokenizer.chat_template == TEMPLATE
    identities = {one.load().tokenizer_identity() for one in (pair, given, open_pair("org/bare", None))}
    assert len(identities) == 3
    with pytest.raises(ModelError, match="org/lora/one/final holds no tokenizer"):
        open_pair("org/base", None, tokenizer="org/lora/one/final")


def test_weights_that_are_only_pickled_are_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub.add("org/pickled", tmp_path)
    with pytest.raises(ModelError, match=r"org/pickled has no weights in safetensors.*not fetched"):
        open_pair("org/pickled", None)


def test_a_model_of_the_catalogue_whose_tokenizer_is_another_ones(hub: Hub, tmp_path: Path) -> None:
    plain, chat = "google/gemma-3-1b-pt", "google/gemma-3-1b-it"
    base = save_base(tmp_path, "gemma3", tokenizer=tiny_tokenizer(template=None))
    hub.add(plain, base)
    hub.add(chat, save_full(tmp_path, base, tokenizer=tiny_tokenizer(template=OTHER)))
    words = ["organism=chat", "model=gemma3_1B_pt", "diffing/method=kl", f"out={tmp_path / 'out'}"]
    pair = open_request(request_for(compose_run(words)))
    assert pair.source("base").name == plain
    assert pair.source("tuned").name == chat
    assert pair.tokenizer.chat_template == OTHER
    assert pair.side_tokenizer("tuned") is pair.tokenizer


def test_a_revision_that_the_cache_lacks_is_told(hub: Hub, alone: list[Any]) -> None:
    with pytest.raises(ModelError, match="org/base is not whole in its local cache at revision 'v7'"):
        open_pair("org/base", None, revision="v7")
    assert not alone
