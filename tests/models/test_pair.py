"""What a pair promises beside its numbers: one copy, restored state, early stop, identity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.test_parity import batch
from tests.tiny import save_base, save_full, save_lora

from finetrace.core.errors import BadInput, ModelError
from finetrace.models import Pair, layer_index, open_pair

Bases = Callable[[str], Path]


def hooks(pair: Pair) -> int:
    with pair.open("base") as model:
        modules = list(model.get_decoder().modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def final(pair: Pair, side: str) -> torch.Tensor:
    found = pair.trunk(side, *batch()).final
    assert found is not None
    return found


def test_what_a_pair_says_of_itself(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base)
    pair = open_pair(base, tuned, nulls={"calm": tuned})
    assert pair.sides == ("base", "tuned", "calm")
    assert [pair.kind(side) for side in pair.sides] == ["base", "adapter", "adapter"]
    assert (pair.n_layers, pair.d_model, pair.vocab_size, pair.max_positions) == (2, 32, 64, 128)
    assert pair.dtype == torch.float32
    with pytest.raises(BadInput, match=r"There is no side 'tunde'\. Did you mean 'tuned'"):
        pair.kind("tunde")


def test_early_stop_runs_no_later_block_and_leaves_no_hook(base_of: Bases) -> None:
    pair = open_pair(base_of("llama"), None)
    before, whole = hooks(pair), pair.trunk("base", *batch(), layers=(0, 1))
    ran = []
    with pair.open("base") as model:
        handle = model.get_decoder().layers[1].register_forward_hook(lambda *_: ran.append(1))
        try:
            found = pair.trunk("base", *batch(), layers=(0,), final=False)
        finally:
            handle.remove()
    assert not ran
    assert found.final is None
    assert torch.equal(found.layers[0], whole.layers[0])
    assert hooks(pair) == before
    assert pair.trunk("base", *batch(), final=False).layers == {}


def test_a_forward_that_fails_leaves_hooks_and_adapters_as_they_were(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    pair = open_pair(base, save_lora(tmp_path, base))
    before, clean = hooks(pair), final(pair, "base")
    with pytest.raises(IndexError):
        pair.trunk("tuned", torch.full((1, 4), 9_999), torch.ones(1, 4, dtype=torch.long), layers=(0, 1))
    assert hooks(pair) == before
    assert torch.equal(final(pair, "base"), clean)


def test_sides_nest_and_come_back(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    one, two = save_lora(tmp_path, base), save_lora(tmp_path, base, seed=2, name="two")
    pair = open_pair(base, one, nulls={"two": two})
    alone = {side: final(pair, side) for side in pair.sides}
    with pair.open("tuned"):
        assert torch.equal(final(pair, "two"), alone["two"])
        assert torch.equal(final(pair, "base"), alone["base"])
        assert torch.equal(final(pair, "tuned"), alone["tuned"])
    assert torch.equal(final(pair, "base"), alone["base"])
    assert not torch.equal(alone["tuned"], alone["two"])


def test_sides_are_called_like_models(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    pair = open_pair(base, save_lora(tmp_path, base, scale=0.5))
    ids = batch()[0][:1]
    assert not torch.equal(pair.base(input_ids=ids).logits, pair.tuned(input_ids=ids).logits)
    assert (
        pair.tuned.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] >= 21
    )


def test_a_scaled_adapter_is_scaled_inside_only(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj", "lm_head"])
    pair = open_pair(base, tuned)
    whole, head = final(pair, "tuned"), pair.head("tuned").weight
    with pair.scale_adapter("tuned", 0.0):
        assert torch.equal(final(pair, "tuned"), final(pair, "base"))
        assert pair.same_head("tuned") or torch.equal(pair.head("tuned").weight, pair.head("base").weight)
    with pair.scale_adapter("tuned", 3.0):
        assert not torch.equal(final(pair, "tuned"), whole)
    with pytest.raises(IndexError), pair.scale_adapter("tuned", 3.0):
        pair.trunk("tuned", torch.full((1, 4), 9_999), torch.ones(1, 4, dtype=torch.long))
    assert torch.equal(final(pair, "tuned"), whole)
    assert torch.equal(pair.head("tuned").weight, head)


def test_what_cannot_be_scaled_says_so(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    sides = {
        "dora": save_lora(tmp_path, base, dora=True, name="dora"),
        "saved": save_lora(tmp_path, base, targets=["q_proj"], modules_to_save=["lm_head"], name="saved"),
        "full": save_full(tmp_path, base),
    }
    pair = open_pair(base, None, nulls=sides)
    for side in (*sides, "tuned"):
        with pytest.raises(ModelError, match=side), pair.scale_adapter(side, 0.5):
            pass


def test_a_lora_pair_takes_one_copy_of_the_weights(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", d=128, layers=4, vocab=512)
    alone = open_pair(base, None).memory()["total"]
    pair = open_pair(base, save_lora(tmp_path, base, r=2, targets=["q_proj", "v_proj"]))
    before = pair.memory()["total"]
    final(pair, "tuned")
    pair.head("tuned")
    assert before <= 1.05 * alone
    assert pair.memory()["total"] == before
    assert pair.head("tuned").weight.data_ptr() == pair.head("base").weight.data_ptr()


def test_a_full_checkpoint_shares_what_is_identical(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", d=64, layers=4)
    tuned = save_full(tmp_path, base, touch=["layers.3.self_attn.q_proj"])
    alone = open_pair(base, None).memory()["total"]
    held = open_pair(base, tuned).memory()
    assert held["sides"]["tuned"] == 64 * 64 * 4
    assert held["total"] == alone + 64 * 64 * 4
    assert held["shared"]["tuned"] == alone - 64 * 64 * 4


def test_release_frees_and_the_next_use_loads_again(base_of: Bases) -> None:
    pair = open_pair(base_of("llama"), None)
    before = final(pair, "base")
    pair.release()
    assert torch.equal(final(pair, "base"), before)


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    sharded = save_base(tmp_path, "llama", name="sharded", shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    other = save_base(tmp_path, "llama", name="other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-6
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    one, two, three = (open_pair(folder, None).identity("base") for folder in (base, sharded, other))
    assert one == two
    assert one != three


def test_identity_of_a_file_that_changes_under_the_same_name(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    before = open_pair(base, None).identity("base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] *= 1.5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert open_pair(base, None).identity("base") != before


def test_an_adapters_identity_holds_its_scaling(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    one = save_lora(tmp_path, base, name="one")
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert open_pair(base, one).identity("tuned") == open_pair(base, two).identity("tuned")
    config = two / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    assert open_pair(base, one).identity("tuned") != open_pair(base, two).identity("tuned")


def test_tokenizer_identity_holds_the_template(base_of: Bases) -> None:
    base = base_of("llama")
    ours, again = open_pair(base, None), open_pair(base, None)
    assert ours.tokenizer_identity() == again.tokenizer_identity()
    other = open_pair(base, None, chat_template="{{ messages }}")
    assert other.tokenizer_identity() != ours.tokenizer_identity()


def test_tokenizer_identity_does_not_hold_padding(base_of: Bases) -> None:
    pair = open_pair(base_of("llama"), None)
    before = pair.tokenizer_identity()
    pair.tokenizer(["w1 w2", "w3"], padding=True, truncation=True, max_length=8)
    assert pair.tokenizer_identity() == before


@pytest.mark.parametrize(
    ("given", "taken"), [(0, 0), (-1, 10), (3, 3), (0.0, 0), (1.0, 10), (0.5, 5), (0.25, 3), (0.24, 2)]
)
def test_layers_are_taken_as_said(given: Any, taken: int) -> None:
    assert layer_index(given, 11) == taken


@pytest.mark.parametrize("given", [11, -12, 1.5, -0.1, True, "3"])
def test_layers_that_are_not_there(given: Any) -> None:
    with pytest.raises(BadInput):
        layer_index(given, 11)


def test_loading_prints_nothing(base_of: Bases, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base)
    capfd.readouterr()
    open_pair(base, tuned).load()
    assert "".join(capfd.readouterr()) == ""
