"""Adapter folders without a model: the same factors as in a pair, and what training added to where they began."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_lora
from tests.weights.drawn import whole

from finetrace.core.errors import ModelError
from finetrace.models import open_pair, resolve
from finetrace.weights import Dora, LowRank, read, stream
from finetrace.weights.adapter_files import adapter_file_deltas

Bases = Callable[[str], Path]
FILE = "adapter_model.safetensors"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rslora": True, "alpha_pattern": {"layers.0.*": 2.0}, "rank_pattern": {"q_proj": 2}}),
    ("llama", {"dora": True, "targets": ["q_proj"]}),
    ("gpt2", {"targets": ["c_attn", "c_fc"]}),
    ("gpt2", {"targets": ["c_attn"], "dora": True}),
]


@pytest.mark.parametrize(
    ("family", "config"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x) or "plain"
)
def test_a_folder_alone_tells_what_a_pair_does(
    family: str, config: dict[str, Any], base_of: Bases, tmp_path: Path
) -> None:
    base = base_of(family)
    tuned = save_lora(tmp_path, base, **config)
    wanted = read.deltas(open_pair(base, tuned))
    found = adapter_file_deltas(resolve(tuned), weight=lambda name: stream.stored_weight(resolve(base), name))
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        assert isinstance(delta, Dora if config.get("dora") else LowRank)
        torch.testing.assert_close(whole(delta), whole(wanted[name]), rtol=1e-6, atol=1e-9)


def pissa(base: Path, folder: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """(adapter at step 0, the same after a step, what the step did to the function's weights)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    plain = {name: weight.double().clone() for name, weight in read.matrices(model) if "q_proj" in name}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    adapted: Any = get_peft_model(model, config)
    adapted.save_pretrained(folder / "start")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                tensor.add_(1e-3 * torch.randn_like(tensor))
    adapted.save_pretrained(folder / "after")
    merged = dict(read.matrices(adapted.merge_and_unload()))
    for name in ("start", "after"):
        # PEFT does not say in the file how the factors began.
        path = folder / name / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "pissa"}))
    return (
        folder / "start",
        folder / "after",
        {name: merged[name].double() - old for name, old in plain.items()},
    )


def test_factors_that_did_not_begin_as_zero(base_of: Bases, tmp_path: Path) -> None:
    start, after, wanted = pissa(base_of("llama"), tmp_path)
    found = adapter_file_deltas(resolve(after), start=resolve(start))
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        torch.testing.assert_close(whole(delta), wanted[name], rtol=1e-3, atol=2e-6)
        assert delta.rank_bound == 8
    same = adapter_file_deltas(resolve(start), start=resolve(start))
    assert all(delta.square() == 0.0 for delta in same.values())
    with pytest.raises(ModelError, match=r"starts from pissa factors.* its folder of step 0"):
        adapter_file_deltas(resolve(after))


def test_what_is_wrong_with_a_folder(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    dora = save_lora(tmp_path, base, name="dora", dora=True)
    with pytest.raises(ModelError, match="is a DoRA adapter: its change cannot be told without"):
        adapter_file_deltas(resolve(dora))
    one = save_lora(tmp_path, base, name="one", targets=["q_proj"])
    two = save_lora(tmp_path, base, name="two", targets=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="do not adapt the same modules"):
        adapter_file_deltas(resolve(one), start=resolve(two))
    weights = load_file(one / FILE)
    save_file({key: value for key, value in weights.items() if "lora_A" in key}, one / FILE)
    with pytest.raises(ModelError, match=r"no factor B that fits the A of model\.layers"):
        adapter_file_deltas(resolve(one))
    save_file({"nothing": torch.ones(1)}, one / FILE)
    with pytest.raises(ModelError, match="holds no factors of a linear layer"):
        adapter_file_deltas(resolve(one))
    (two / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ModelError, match="not a LoRA, rsLoRA or DoRA"):
        adapter_file_deltas(resolve(two))
