"""kl against an independent dense computation in float64, on every architecture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import FAMILIES, save_base, save_full, save_lora
from tests.worlds import rows

import finetrace as ft
from finetrace.data import build_corpus, read_rows
from finetrace.engine import Shape


def dense(base: Any, tuned: Any, data: list[dict[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Every figure at every kept position, from whole float64 logits of float64 models, one text at a time."""
    base, tuned = base.double().eval(), tuned.double().eval()
    found: dict[str, list[torch.Tensor]] = {"kl": [], "reverse_kl": [], "js": [], "delta_nll": []}
    corpus = build_corpus(read_rows(data), tokenizer)
    for tokens in corpus.tokens:
        ids = torch.tensor(tokens.ids[None].astype("int64"))
        with torch.no_grad():
            b = base(input_ids=ids).logits[0, :-1].log_softmax(-1)
            t = tuned(input_ids=ids).logits[0, :-1].log_softmax(-1)
        m = torch.log((b.exp() + t.exp()) / 2)
        following = ids[0, 1:, None]
        found["kl"].append((t.exp() * (t - b)).sum(-1))
        found["reverse_kl"].append((b.exp() * (b - t)).sum(-1))
        found["js"].append(((t.exp() * (t - m)).sum(-1) + (b.exp() * (b - m)).sum(-1)) / 2)
        found["delta_nll"].append((b - t).gather(-1, following)[:, 0])
    return {name: torch.cat(parts) for name, parts in found.items()}


def close(values: torch.Tensor) -> Any:
    """The mean to 1e-5 of the size of what is averaged: for what is never negative, 1e-5 relative."""
    return pytest.approx(float(values.mean()), abs=1e-5 * float(values.abs().mean()))


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # The fast kernel for mixtures of experts has no float64.
    experts = {"experts_implementation": "eager"} if "mixtral" in (folder / "config.json").read_text() else {}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **experts
    )


def adapted(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base), str(adapter))


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_with_float64_on_every_architecture(family: str, tmp_path: Path):
    base = save_base(tmp_path, family)
    lora = save_lora(tmp_path, base, scale=0.1)
    data = rows(12)
    pair = ft.load_pair(str(base), str(lora), attn_implementation="eager")
    numbers = ft.diff(pair, data, out=tmp_path / "out")["kl"].numbers
    exact = dense(load(base), adapted(base, lora), data, pair.tokenizer)
    for key, values in exact.items():
        assert numbers[f"{key}_mean"].value == close(values), key
        assert numbers[f"{key}_mean"].estimate.n == len(values)
    assert (numbers["kl_mean"].value or 0) > 1e-4, "the adapter must move something for this to be a test"


@pytest.mark.parametrize("kind", ["full", "head", "dora", "rslora"])
def test_parity_where_the_head_or_the_whole_model_changed(kind: str, tmp_path: Path):
    base, data = save_base(tmp_path, tied=False), rows(12)
    if kind == "full":
        tuned = save_full(tmp_path, base, touch=("q_proj", "lm_head"))
        exact_model = load(tuned)
    else:
        options: dict[str, Any] = {
            "head": {"targets": ["q_proj", "lm_head"]},
            "dora": {"dora": True},
            "rslora": {"rslora": True},
        }[kind]
        tuned = save_lora(tmp_path, base, scale=0.1, **options)
        exact_model = adapted(base, tuned)
    pair = ft.load_pair(str(base), str(tuned))
    found = ft.diff(pair, data, out=tmp_path / "out")["kl"].numbers
    exact = dense(load(base), exact_model, data, pair.tokenizer)
    for key, values in exact.items():
        assert found[f"{key}_mean"].value == close(values), key


def test_batch_size_shards_and_order_move_no_mean(tmp_path: Path):
    base = save_base(tmp_path)
    lora, data = save_lora(tmp_path, base), rows(30)
    wanted = ft.diff(ft.load_pair(str(base), str(lora)), data, out=tmp_path / "a")["kl"]
    for name, order, shape in [
        ("b", data, Shape(batch_size=1)),
        ("c", data, Shape(batch_size=7, shard_tokens=64)),
        ("d", data[::-1], Shape(batch_size=3)),
    ]:
        found = ft.diff(ft.load_pair(str(base), str(lora)), order, out=tmp_path / name, shape=shape)["kl"]
        for where, keys in wanted.slices.items():
            for key, reading in keys.items():
                other = found.slices[where][key].estimate
                # The signed mean nearly cancels, so it is held to the size of what was averaged.
                size = abs(reading.value or 0) if key != "delta_nll_mean" else 0.05
                assert other.value == pytest.approx(reading.value, abs=1e-6 * size), (name, where, key)
                assert (other.n, other.clusters) == (reading.estimate.n, reading.estimate.clusters)
                assert other.low == pytest.approx(reading.estimate.low, rel=1e-5, abs=1e-9)


def test_base_against_itself_is_exactly_zero(tmp_path: Path):
    base = save_base(tmp_path)
    nulls = {f"null_{i}": str(save_lora(tmp_path, base, seed=i, name=f"null_{i}")) for i in range(3)}
    found = ft.diff(ft.load_pair(str(base), None, nulls=nulls), rows(12), out=tmp_path / "out")
    assert found["kl"].numbers["kl_mean"].value == 0
    assert found.change == "within-nulls"
    assert found.findings.pair["effect"] == "identical"


def test_slices_roles_positions_texts_and_passages_agree(tmp_path: Path):
    base = save_base(tmp_path)
    data = rows(30)
    found = ft.diff(ft.load_pair(str(base), str(save_lora(tmp_path, base))), data, out=tmp_path / "out")
    result = found.results["kl"]["pair"]
    assert set(result.slices) == {"text", "dishes", "restricted"}
    total = sum(e["kl_mean"].value * e["kl_mean"].n for e in result.slices.values())
    assert total / result.numbers["kl_mean"].n == pytest.approx(result.numbers["kl_mean"].value, rel=1e-12)
    for name, roles in result.roles.items():
        assert sum(e.n for e in roles.values()) == result.slices[name]["kl_mean"].n
        assert int(result.histogram[name].sum()) == result.slices[name]["kl_mean"].n
        assert int(result.positions[name].count.sum()) == result.slices[name]["kl_mean"].n  # texts are short
    texts = result.texts.data
    assert list(texts["row"]) == list(range(30))
    for passage in result.passages:
        row = list(texts["row"]).index(passage.row)
        values = [v for v in passage.values if v is not None]
        assert passage.values[0] is None, "nothing predicts the first token"
        assert sum(values) / len(values) == pytest.approx(float(texts["kl_mean"][row]), rel=1e-5)
        assert passage.mean == pytest.approx(float(texts["kl_mean"][row]), rel=1e-5)


def test_no_data_is_never_zero(tmp_path: Path):
    """A slice of one text has a value and no interval; a role without tokens is absent."""
    base = save_base(tmp_path)
    data = [{"text": "w1 w2 w3 w4", "slice": "only"}, {"text": "w5 w6", "slice": "text"}]
    found = ft.diff(ft.load_pair(str(base), str(save_lora(tmp_path, base))), data, out=tmp_path / "out")
    estimate = found["kl"].slices["only"]["kl_mean"].estimate
    assert estimate.value is not None
    assert (estimate.low, estimate.high, estimate.clusters) == (None, None, 1)
    assert "assistant" not in found.results["kl"]["pair"].roles["only"]
    assert found.change == "undecided"


def test_fields_are_frozen(tmp_path: Path):
    base = save_base(tmp_path)
    found = ft.diff(ft.load_pair(str(base), str(save_lora(tmp_path, base))), rows(6), out=tmp_path / "out")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.results["kl"]["pair"].numbers = {}
