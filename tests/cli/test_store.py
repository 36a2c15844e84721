"""Hidden states kept on disk, as a user asks for them: what is stored, what is used again, and what is refused with one line."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.shell import run
from tests.worlds import rows, world

from finetrace.store import shard_file
from finetrace.store.activations import Activations
from finetrace.store.lock import alone


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with a null, texts, and an organism of one's own."""
    folder = tmp_path_factory.mktemp("store")
    base, tuned, _ = world(folder, nulls=1)
    for name, n in (("texts", 12), ("others", 11)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(n)))
    for group, value in {
        "organism": {"name": "mine", "finetuned_models": {"small": {"default": {"adapter_id": str(tuned)}}}},
        "model": {"name": "small", "model_id": str(base)},
    }.items():
        (folder / "own" / group).mkdir(parents=True)
        (folder / "own" / group / f"{value['name']}.yaml").write_text(yaml.safe_dump(value))
    return folder


def audit(desk: Path, out: Path, *words: Any, tuned: str = "lora", data: str = "texts") -> list[Any]:
    usual = (
        "--data",
        desk / f"{data}.jsonl",
        "--methods",
        "pca",
        "--set",
        "pca.layers=[1.0]",
        "--dtype",
        "float32",
    )
    return ["audit", desk / "base", desk / tuned, *usual, "--no-dose", "--out", out, *words]


def prepare(desk: Path, out: Path, *words: str) -> list[Any]:
    """A run that stores and stops there."""
    stored = ("pipeline.mode=preprocessing", "preprocessing.store=true", "diffing/method=pca", f"out={out}")
    usual = ("organism=mine", f"data.id={desk / 'texts.jsonl'}", "diffing.method.layers=[1.0]", *stored)
    return ["run", "--config-dir", desk / "own", *usual, *words]


@pytest.fixture(scope="module")
def whole(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished cache; not to be written to."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *prepare(desk, root / "out", f"preprocessing.store_dir={root / 'store'}")) == 0
    return root / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def shard(store: Path) -> Path:
    (found,) = store.glob("*/*.safetensors")
    return found


def held(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was told, on one line: a terminal breaks long ones."""
    return " ".join(capsys.readouterr().err.split())


def test_preprocessing_stores_and_an_audit_reads(desk, store, tmp_path, monkeypatch, capsys):
    before = held(store)
    assert run(monkeypatch, *audit(desk, tmp_path / "read", "--store", store)) == 0
    told = said(capsys)
    assert held(store) == before, "what is whole is read, not written"
    assert "Checking hidden states" in told
    assert "Storing" not in told
    assert "pca: hidden states are read as they are stored, in bfloat16" in told
    protocol = json.loads((tmp_path / "read" / "report.json").read_text())["protocol"]
    assert protocol["stored_states"]["exact"] is False
    assert any("as they are stored, in bfloat16" in note for note in protocol["notes"])

    assert run(monkeypatch, *audit(desk, tmp_path / "plain")) == 0
    assert not list((tmp_path / "plain").rglob("*key.json")), "nothing is stored unless asked for"
    exact = ("--store", tmp_path / "exact", "--store-dtype", "float32")
    assert run(monkeypatch, *audit(desk, tmp_path / "exact_out", *exact)) == 0
    keys = {one: _key_and_value(tmp_path / one) for one in ("read", "plain", "exact_out")}
    assert keys["exact_out"] == keys["plain"], "stored to the last bit: the same work"
    assert keys["read"][0] != keys["plain"][0]
    assert keys["read"][1] == pytest.approx(keys["plain"][1], rel=1e-3)
    assert keys["read"][1] != keys["plain"][1]


def _key_and_value(out: Path) -> tuple[str, float]:
    report = json.loads((out / "report.json").read_text())
    (key,) = (path.name for path in (out / "runs" / "base" / "lora" / "default" / "pca").iterdir())
    return key, report["methods"]["pca"]["numbers"]["top_component_ratio"]["value"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "wrong"), [(_flip, "its checksum is another"), (_cut_short, "cut short or was changed")]
)
def test_a_spoilt_shard_is_refused_and_made_again_once_deleted(
    spoil, wrong, desk, store, tmp_path, monkeypatch, capsys
):
    before = held(store)
    spoil(shard(store))
    spoilt = held(store)
    words = audit(desk, tmp_path / "out", "--store", store)
    assert run(monkeypatch, *words) == 2
    told = said(capsys)
    assert wrong in told
    assert "Delete that file and store the activations again: only what is wrong is redone." in told
    assert "Traceback" not in told
    assert held(store) == spoilt
    assert not (tmp_path / "out" / "report.json").exists()
    shard(store).unlink()
    again = prepare(desk, tmp_path / "out", f"preprocessing.store_dir={store}")
    assert run(monkeypatch, *again) == 0
    assert "Shard 0 of the hidden states" in said(capsys)
    assert held(store) == before


def test_another_pairs_states_are_not_used_and_pointing_at_them_is_an_error(
    desk, store, tmp_path, monkeypatch, capsys
):
    (key,) = (path.name for path in store.iterdir())
    for other, differs in (({"tuned": "null_0"}, "made_of.tuned"), ({"data": "others"}, "made_of.texts")):
        assert run(monkeypatch, *audit(desk, tmp_path / "out", "--store", store / key, **other)) == 2
        told = said(capsys)
        assert f"{key} holds activations of something else: {differs}" in told
        assert not (tmp_path / "out" / "report.json").exists()
    layers = ("--store-layers", "0")
    assert run(monkeypatch, *audit(desk, tmp_path / "out", "--store", store / key, *layers)) == 2
    assert "layout.layers ([1] there, [0] asked for)" in said(capsys)
    before = held(store / key)
    assert run(monkeypatch, *audit(desk, tmp_path / "out", "--store", store, data="others")) == 0
    told = said(capsys)
    assert f"The nearest there, {key}, differs in made_of.texts" in told
    assert "They are made now." in told
    assert held(store / key) == before
    assert len(list(store.iterdir())) == 2


def test_another_tokenizer_is_another_store(desk, store, tmp_path, monkeypatch, capsys):
    shutil.copytree(desk / "base", tmp_path / "base")
    path = tmp_path / "base" / "chat_template.jinja"
    path.write_text(path.read_text() + " ")
    (key,) = (one.name for one in store.iterdir())
    words = audit(desk, tmp_path / "out", "--store", store / key)
    assert run(monkeypatch, *words[:1], tmp_path / "base", *words[2:]) == 2
    assert "made_of.tokenizer" in said(capsys)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(desk, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 1 << 30, 100))
    assert run(monkeypatch, *audit(desk, tmp_path / "out", "--store", tmp_path / "store")) == 2
    told = said(capsys)
    assert "The disk is full: Storing" in told
    assert "Free some space or name another folder." in told
    assert not list((tmp_path / "store").iterdir())


def test_a_disk_that_fills_up_leaves_nothing_half_written_and_the_run_goes_on(
    desk, tmp_path, monkeypatch, capsys
):
    store = tmp_path / "store"
    words = prepare(desk, tmp_path / "out", f"preprocessing.store_dir={store}")
    whole_file = shard_file.whole_file

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_file, "whole_file", full)
    assert run(monkeypatch, *words) == 2
    assert "The disk is full: Shard 0 of the activations" in said(capsys)
    assert {path.suffix for path in store.rglob("*") if path.is_file()} == {".json", ".jsonl"}
    monkeypatch.setattr(shard_file, "whole_file", whole_file)
    assert run(monkeypatch, *words) == 0
    (folder,) = store.iterdir()
    Activations(folder).check()


def test_a_second_writer_is_told_who_is_at_it(desk, store, tmp_path, monkeypatch, capsys):
    (folder,) = store.iterdir()
    (folder / "manifest.json").unlink()
    with alone(folder / ".lock", "the test"):
        assert run(monkeypatch, *audit(desk, tmp_path / "out", "--store", store)) == 2
    told = said(capsys)
    assert f"The cache {folder} is being written by process" in told
    assert "wait until it is done" in told


def test_a_dry_run_says_the_bytes(desk, tmp_path, monkeypatch, capsys):
    words = ("--store", tmp_path / "store", "--store-nulls", "--null", desk / "null_0", "--dry-run")
    assert run(monkeypatch, *audit(desk, tmp_path / "out", *words)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "of 143 bytes (layers 1) for each of 2 fine-tunes" in told, (
        "2 x 32 numbers of 2 bytes, and 15 of where"
    )
    assert run(monkeypatch, *prepare(desk, tmp_path / "out", "--dry-run")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"hidden states in {tmp_path / 'out' / 'activations'}" in told
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--methods", "kl", "--store", "store"), "kl names no layer at which it reads the texts again"),
        (("--store", "store", "--store-dtype", "float8"), "stored as bfloat16 or float32, not float8"),
        (("--store", "store", "--store-layers", "1.5"), "'1.5' is no layer"),
        (("--store", "store", "--store-layers", "7"), "There is no layer 7: this model has layers 0 to 1"),
        (("--store-layers", "0.5",), "name a folder, --store DIR"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_said(words, wrong, desk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *audit(desk, tmp_path / "out"), *words) == 2
    assert wrong in said(capsys)
    assert not (tmp_path / "store").exists()
