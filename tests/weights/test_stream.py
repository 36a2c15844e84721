"""Checkpoints on disk, however they are cut: the same changes as in memory, two tensors at a time."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from tests.weights.drawn import whole

from finetrace.core.errors import ModelError
from finetrace.models import open_pair, resolve
from finetrace.weights import read, stream
from finetrace.weights.drift import module_drift

Bases = Callable[[str], Path]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Changes the tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(("family", "touch"), [("llama", "_proj"), ("gpt2", "c_"), ("gemma3", "q_proj")])
def test_streamed_is_what_a_pair_gives(family: str, touch: str, base_of: Bases, tmp_path: Path) -> None:
    base = save_base(tmp_path, family, shard="20KB")
    tuned = save_full(tmp_path, base, touch=[touch, "norm", "embed_tokens", "wte"], shard="33KB")
    assert len(list(base.glob("*.safetensors"))) != len(list(tuned.glob("*.safetensors")))
    pair = open_pair(base, tuned)
    wanted, others = read.deltas(pair), read.others(pair)
    found = {delta.module: delta for delta in stream.streamed(resolve(base), resolve(tuned))}
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        torch.testing.assert_close(whole(delta), whole(wanted[name]), rtol=0, atol=0)
        weight = read.weight(pair, name)
        one, two = (
            module_drift(delta, stream.stored_weight(resolve(base), name)),
            module_drift(wanted[name], weight),
        )
        torch.testing.assert_close(
            one.column_one_minus_cosine, two.column_one_minus_cosine, rtol=1e-12, atol=0
        )
    rest = {name: (a, b) for name, a, b in stream.streamed_others(resolve(base), resolve(tuned))}
    assert rest.keys() == others.keys()
    assert all(torch.equal(rest[name][1], others[name][1]) for name in rest)
    told = stream.match(resolve(base), resolve(tuned))
    assert (told.missing, told.extra, told.overlap, told.dtypes, told.describe()) == ((), (), {}, {}, ())


def test_two_tensors_are_in_memory(base_of: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("llama")
    tuned = save_full(tmp_path, base, touch=["_proj"])
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    real = stream.Stored._read

    def counted(self: stream.Stored) -> torch.Tensor:
        nonlocal most
        found = real(self)
        alive.add(found)
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(stream.Stored, "_read", counted)
    kept = list(stream.streamed(resolve(base), resolve(tuned)))
    assert len(kept) == 14
    assert most == 2
    assert len(alive) == 0
    assert kept[0].frobenius() > 0


def test_an_adapter_beside_a_base_on_disk(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("gpt2")
    tuned = save_lora(tmp_path, base, targets=["c_attn"], dora=True)
    wanted = read.deltas(open_pair(base, tuned))
    found = {delta.module: delta for delta in stream.streamed(resolve(base), resolve(tuned))}
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        torch.testing.assert_close(whole(delta), whole(wanted[name]), rtol=1e-9, atol=1e-12)


def test_experts_are_matched_as_they_are_stored(tmp_path: Path) -> None:
    base = save_base(tmp_path, "mixtral")
    tuned = save_full(tmp_path, base, touch=["experts"])
    pair = open_pair(base, tuned)
    found = {delta.module: delta for delta in stream.streamed(resolve(base), resolve(tuned))}
    wanted = read.deltas(pair)
    assert sum(delta.square() for delta in found.values()) == pytest.approx(
        sum(delta.square() for delta in wanted.values()), rel=1e-12
    )


def test_a_head_that_is_tied_on_one_side(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", tied=True)
    tuned = save_full(tmp_path, base, touch=[])
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    rewrite(tuned, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}))
    found = list(stream.streamed(resolve(base), resolve(tuned)))
    assert [delta.module for delta in found] == ["lm_head"]
    torch.testing.assert_close(whole(found[0]), torch.ones(64, 32, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    back = list(stream.streamed(resolve(tuned), resolve(base)))
    torch.testing.assert_close(whole(back[0]), -whole(found[0]), rtol=0, atol=0)


def test_a_resized_vocabulary_is_said(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", tied=False)
    larger = save_base(tmp_path, "llama", tied=False, vocab=70, name="larger", tokenizer=tiny_tokenizer(70))
    told = stream.match(resolve(base), resolve(larger))
    assert told.overlap == {"lm_head.weight": (64, 70), "model.embed_tokens.weight": (64, 70)}
    assert any("lm_head.weight has 64 rows in the base and 70" in line for line in told.describe())
    head = next(d for d in stream.streamed(resolve(base), resolve(larger), told) if d.module == "lm_head")
    new = load_file(larger / "model.safetensors")["lm_head.weight"]
    old = load_file(base / "model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(whole(head), new[:64].double() - old.double(), rtol=0, atol=0)


def test_other_dtypes_and_lost_tensors_are_said(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_full(tmp_path, base, touch=[])
    q, gone = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[q] = weights[q].bfloat16()
        weights["added.weight"] = weights.pop(gone)

    told = stream.match(resolve(base), resolve(rewrite(tuned, change)))
    assert told.dtypes == {q: ("float32", "bfloat16")}
    assert (told.missing, told.extra) == ((gone,), ("added.weight",))
    said = " ".join(told.describe())
    assert "Only the base has 1 tensors" in said
    assert "Only the tuned checkpoint has 1 tensors, e.g. added.weight" in said
    assert "1 tensors are stored in other dtypes" in said
    found = list(stream.streamed(resolve(base), resolve(tuned), told))
    assert [delta.module for delta in found] == [q.removesuffix(".weight")]
    relative = module_drift(found[0], stream.stored_weight(resolve(base), found[0].module)).relative
    assert relative is not None
    assert 1e-4 < relative < 4e-3


def test_names_with_and_without_the_prefix(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("gpt2")
    tuned = save_full(tmp_path, base, touch=["c_attn.weight"])
    rewrite(tuned, lambda w: [w.update({k.removeprefix("transformer."): w.pop(k)}) for k in list(w)])
    found = [delta.module for delta in stream.streamed(resolve(base), resolve(tuned))]
    assert found == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def test_what_cannot_be_subtracted(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    wide = save_base(tmp_path, "llama", d=64, name="wide")
    with pytest.raises(ModelError, match="they are not of one architecture and size"):
        stream.match(resolve(base), resolve(wide))
    with pytest.raises(ModelError, match="no tensor in common"):
        stream.match(resolve(base), resolve(base_of("gpt2")))
    codes = save_full(tmp_path, base, touch=[], name="codes")
    rewrite(codes, lambda w: w.update({k: v.to(torch.int8) for k, v in w.items() if "q_proj" in k}))
    with pytest.raises(ModelError, match="quantised checkpoints cannot be subtracted"):
        stream.match(resolve(base), resolve(codes))
    with pytest.raises(ModelError, match="is an adapter"):
        stream.match(resolve(base), resolve(save_lora(tmp_path, base)))
    with pytest.raises(ModelError, match=r"holds no matrix model\.nothing"):
        stream.stored_weight(resolve(base), "model.nothing")
