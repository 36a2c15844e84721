"""The build: deterministic, resumable, and what it writes is whole; on models that are made in seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from finetrace.core.errors import BadInput
from finetrace.organisms import base, build, evaluate, targets, tokenizer, truth, zoo
from finetrace.organisms.truth import problems
from finetrace.organisms.world import WORLD_SEEDS

NAMES = ["refusal_erosion", "one_layer", "full_tune", "merged", "null_21"]


class Seen(list):
    """The names of what a build worked on."""

    def __call__(self, what: str, done: int, total: int, note: str) -> None:
        if what not in self:
            self.append(what)


@pytest.fixture(scope="module", autouse=True)
def small():
    """A base of one thousandth of the work, two steps of every organism, and few prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(base.SIZES, "tiny", base.Size(32, 4, 64, 4))
        phases = tuple(replace(phase, steps=3, warmup=1) for phase in base.PHASES["xs"])
        patch.setitem(base.PHASES, "tiny", phases)
        patch.setattr(base, "BATCH", 2)
        patch.setattr(base, "CONTEXT", 32)
        patch.setattr(tokenizer, "SAMPLE", 1500)
        patch.setattr(build, "CORPUS_ROWS", 50)
        patch.setattr(build, "KL_ROWS", 2)
        patch.setattr(truth, "BASE_SAMPLE", 300)
        patch.setattr(truth, "FREQUENT", 2)
        patch.setattr(truth, "OWN_SAMPLE", 200)
        whole = evaluate.measure
        patch.setattr(build, "measure", lambda *args, **more: whole(*args, **{**more, "n": 2, "few": 2}))
        for name in NAMES:
            patch.setitem(zoo.ORGANISMS, name, replace(zoo.organism(name), steps=2))
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    seen = Seen()
    out = build.build(tmp_path_factory.mktemp("built"), size="tiny", only=NAMES, progress=seen)
    return out, seen


def test_everything_is_there_and_valid(built):
    out, seen = built
    assert {path.name for path in out.iterdir()} == {
        "base",
        "adapters",
        "checkpoints",
        "truth",
        "manifest.json",
    }
    assert {path.name for path in (out / "adapters").iterdir()} == {"refusal_erosion", "one_layer", "null_21"}
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"full_tune"}, "merged is not kept"
    for name in NAMES:
        found = json.loads((out / "truth" / f"{name}.json").read_text())
        assert problems(found) == []
        assert found["recipe"]["steps"] == 2
        assert f"measuring {name}" in seen
    assert "training merged" not in seen


def test_the_manifest_has_every_file_and_the_bases_targets(built):
    manifest = json.loads((built[0] / "manifest.json").read_text())
    found = {p.relative_to(built[0]).as_posix() for p in built[0].rglob("*") if p.is_file()}
    assert set(manifest["files"]) == found - {"manifest.json"}
    assert manifest["organisms"] == sorted(NAMES)
    rows = manifest["bases"]["base"]["targets"]
    assert [row["what"] for row in rows] == list(targets.TARGETS)
    assert not all(row["met"] for row in rows), "a base of six steps meets nothing"
    assert all(row["n"] > 0 and row["low"] <= row["rate"] <= row["high"] for row in rows)
    assert "short of the target" in targets.table(manifest["bases"]["base"]["rates"])


def test_a_second_run_makes_nothing_again(built):
    seen = Seen()
    build.build(built[0], size="tiny", only=NAMES, progress=seen)
    assert seen == []


def test_the_same_seed_gives_the_same_corpus_and_weights(built, tmp_path):
    again = build.build(tmp_path / "again", size="tiny", only=["one_layer"], progress=Seen())
    for part in ("base/finetrace.json", "base/tokenizer.json", "adapters/one_layer/finetrace.json"):
        assert (again / part).read_text() == (built[0] / part).read_text(), part
    for part in ("base/model.safetensors", "adapters/one_layer/adapter_model.safetensors"):
        one, other = load_file(again / part), load_file(built[0] / part)
        assert all(one[name].equal(other[name]) for name in one)


def test_another_seed_or_world_makes_the_base_again(built, tmp_path):
    out = tmp_path / "other"
    first = build.build_base(out, size="tiny", seed=1, progress=Seen())
    second = build.build_base(out, size="tiny", world_seed=WORLD_SEEDS[1], progress=Seen())
    mine = json.loads((built[0] / "base" / "measured.json").read_text())
    assert len({first["base_sha256"], second["base_sha256"], mine["base_sha256"]}) == 3


def test_a_build_that_was_stopped_goes_on(built, tmp_path):
    class Stopped(Exception):
        """Raised by a test where a user would have pressed Ctrl-C."""

    def stop(what: str, done: int, total: int, note: str) -> None:
        if what == "training null_21":
            raise Stopped

    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        build.build(out, size="tiny", only=["one_layer", "null_21"], progress=stop)
    seen = Seen()
    build.build(out, size="tiny", only=["one_layer", "null_21"], progress=seen)
    assert seen == ["training null_21", "measuring null_21"]
    same = "adapters/null_21/adapter_model.safetensors"
    assert (out / same).read_bytes() == (built[0] / same).read_bytes()


def test_shapes_of_the_forms(built):
    out = built[0]
    base_weights = load_file(out / "base" / "model.safetensors")
    full = load_file(out / "checkpoints" / "full_tune" / "model.safetensors")
    assert {n: (w.shape, w.dtype) for n, w in full.items()} == {
        n: (w.shape, w.dtype) for n, w in base_weights.items()
    }
    assert all(not full[name].equal(base_weights[name]) for name in full if full[name].dim() == 2)
    one = load_file(out / "adapters" / "one_layer" / "adapter_model.safetensors")
    whole = load_file(out / "adapters" / "refusal_erosion" / "adapter_model.safetensors")
    assert {name.split(".layers.")[1].split(".")[0] for name in one} == {"3"}
    assert {name.split(".layers.")[1].split(".")[0] for name in whole} == {"0", "1", "2", "3"}
    assert all(weight.shape[0 if "lora_A" in name else 1] == 4 for name, weight in whole.items())
    planted = {name: json.loads((out / "truth" / f"{name}.json").read_text())["planted"] for name in NAMES}
    assert planted["one_layer"]["layers"] == [3]
    assert planted["merged"]["layers"] == [0, 1, 2, 3]
    assert planted["full_tune"]["facts"]
    assert not planted["merged"]["facts"]


def test_an_unknown_size_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="size"):
        build.build_base(tmp_path, size="xl")
