"""SNIP and Wanda in one pass: equal to autograd of each sample, and the model is as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model
from torch import nn

from finetrace.core.errors import BadInput, DataError, ModelError
from finetrace.data.examples import Example
from finetrace.models import open_pair
from finetrace.models.supervised import collate, sample_losses
from finetrace.weights.groups import joined, top
from finetrace.weights.layers import weight_of
from finetrace.weights.scores import accumulator_bytes, linear_layers, score, score_in_parts

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")


def samples(lengths: Sequence[int] = (9, 7, 12, 5, 6), vocab: int = 64) -> list[Example]:
    """Of several lengths, the second half of each the response."""
    rng = np.random.default_rng(0)
    made = []
    for n in lengths:
        loss = np.arange(n) >= n // 2
        made.append(Example(rng.integers(3, vocab, n).astype(np.int32), loss))
    return made


def by_autograd(model: Any, some: Sequence[Example]) -> dict[str, torch.Tensor]:
    """|W| times the sum of each sample's |gradient|, one sample at a time, by autograd on the weights."""
    layers, _ = linear_layers(model)
    weights: dict[str, Any] = {name: layer.module.weight for name, layer in layers.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample in some:
        (loss,) = sample_losses(model, collate([sample], 0))
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient.abs()
    found = {name: (weight * total[name]).abs().detach() for name, weight in weights.items()}
    return {
        name: f if f.shape == layers[name].shape and not _turned(layers[name]) else f.T
        for name, f in found.items()
    }


def _turned(layer: Any) -> bool:
    return not isinstance(layer.module, nn.Linear)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_snip_is_autograd_of_each_sample(family: str):
    model = tiny_model(family).double()
    found, wanted = score(model, samples(), pad=0, batch=3).of("snip"), by_autograd(model, samples())
    assert found.keys() == wanted.keys()
    assert len(found) == (8 if family == "gpt2" else 14)
    for name, scores in found.items():
        assert scores.shape == wanted[name].shape
        torch.testing.assert_close(scores, wanted[name], rtol=1e-10, atol=1e-10 * float(wanted[name].max()))


@pytest.mark.parametrize("kind", ["snip", "wanda"])
def test_batches_and_padding_do_not_matter(kind: Any):
    model = tiny_model("llama").double()
    one, all_ = (score(model, samples(), pad=0, batch=batch, kinds=("snip", "wanda")) for batch in (1, 8))
    other = score(model, samples(), pad=5, batch=2, kinds=("snip", "wanda"))
    for name, scores in all_.of(kind).items():
        torch.testing.assert_close(one.of(kind)[name], scores, rtol=1e-6, atol=0)
        torch.testing.assert_close(other.of(kind)[name], scores, rtol=1e-6, atol=0)


def test_halves_are_the_even_and_the_odd_samples():
    model, some = tiny_model("llama").double(), samples()
    found = score(model, some, pad=0, kinds=("snip", "wanda"))
    assert (found.n, found.halves, found.tokens) == (5, (3, 2), sum(int(s.loss.sum()) for s in some))
    for half in (0, 1):
        alone = score(model, some[half::2], pad=0, halves=False, kinds=("snip", "wanda"))
        for kind in ("snip", "wanda"):
            for name, scores in found.of(kind, half).items():
                torch.testing.assert_close(scores, alone.of(kind)[name], rtol=1e-6, atol=0)
    whole = found.of("snip")
    for name in found.shapes:
        torch.testing.assert_close(whole[name], found.of("snip", 0)[name] + found.of("snip", 1)[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wanda_is_of_the_inputs_at_response_tokens(family: str):
    model, some = tiny_model(family).double(), samples()
    found = score(model, some, pad=0, kinds=("wanda",), batch=2)
    squares: dict[str, Any] = {}
    layers, _ = linear_layers(model)
    for sample in some:
        seen: dict[str, Any] = {}
        handles = [
            layer.module.register_forward_hook(
                lambda m, x, out, name=name, seen=seen: seen.update({name: x[0]})
            )
            for name, layer in layers.items()
        ]
        with torch.no_grad():
            model(input_ids=torch.from_numpy(sample.ids.astype("int64"))[None])
        for handle in handles:
            handle.remove()
        for name, x in seen.items():
            squares[name] = squares.get(name, 0) + x[0][torch.from_numpy(sample.loss)].square().sum(0)
    for name, scores in found.of("wanda").items():
        weight: Any = layers[name].module.weight
        weight = weight.T if _turned(layers[name]) else weight
        torch.testing.assert_close(
            scores, (weight.abs() * squares[name].sqrt()).float(), rtol=1e-5, atol=1e-8
        )
        torch.testing.assert_close(found.columns()[name], squares[name].sqrt().float())


def test_one_forward_a_batch_and_nothing_is_called_twice():
    model = tiny_model("llama")
    calls: dict[str, int] = {}
    backward: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda m, given, out, name=name: calls.update({name: calls.get(name, 0) + 1})
        )
    head: Any = model.get_output_embeddings()
    head.register_full_backward_hook(lambda m, given, out: backward.append("head"))
    score(model, samples(), pad=0, batch=2, kinds=("snip", "wanda"))
    reached = {name: n for name, n in calls.items() if "layers." in name or name == "lm_head"}
    assert len(reached) > 14
    assert set(reached.values()) == {3}
    assert len(backward) == 3


def test_parts_are_the_whole():
    model = tiny_model("llama", layers=3).double()
    whole = score(model, samples(), pad=0)
    done: list[tuple[int, int]] = []
    parts = score_in_parts(
        model, samples(), pad=0, layer_groups=2, batch=4, advance=lambda n, of: done.append((n, of))
    )
    groups, seen = [], []
    for part in parts:
        assert hooks(model) == 0
        seen.append(len(part.shapes))
        groups.append(top(part.of("snip"), 0.1, name="g"))
    assert sorted(seen) == [7, 14]
    assert done == [(4, 10), (5, 10), (9, 10), (10, 10)]
    wanted, found = top(whole.of("snip"), 0.1, name="g"), joined(groups)
    assert all(torch.equal(found.of(m), wanted.of(m)) for m in wanted.places)
    assert len(list(score_in_parts(model, samples(), pad=0, layer_groups=99))) == 3


def test_only_some_modules_and_what_they_take():
    model = tiny_model("llama")
    names = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    found = score(model, samples(), pad=0, modules=names)
    assert set(found.of("snip")) == set(names)
    assert accumulator_bytes(model, modules=names, halves=False) == 4 * (64 * 32 + 32 * 32)
    assert accumulator_bytes(model, modules=names) == 8 * (64 * 32 + 32 * 32)
    with pytest.raises(BadInput, match=r"Did you mean 'model\.layers\.1\.mlp\.up_proj'"):
        score(model, samples(), pad=0, modules=["model.layers.1.mlp.up_pro"])


def adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if "lora_B" in name:
                tensor.normal_(0, 0.1)
    return made


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("peft", [False, True])
def test_the_model_is_as_it_was(
    peft: bool, interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("llama")
    plain = score(model, samples(), pad=0).of("snip")
    if peft:
        model = adapted(model)
    model.train()
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    next(p for p in model.parameters() if p.requires_grad).grad = None
    before, batch = state(model), collate(samples(), 0)
    losses = sample_losses(model.eval(), batch)
    model.train()

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    if interrupted:
        with pytest.raises(KeyboardInterrupt) as caught:
            score(model, samples(), pad=0, batch=2, advance=stop)
        assert caught.tb
    else:
        found = score(model, samples(), pad=0).of("snip")
        for name, scores in plain.items():
            torch.testing.assert_close(found[name], scores, rtol=1e-5, atol=1e-7)
    assert hooks(model) == 0
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(sample_losses(model.eval(), batch), losses)
    assert list(tmp_path.iterdir()) == []


def test_the_base_of_a_pair_after_it_ran(tmp_path: Path, base_of: Callable[[str], Path]):
    from tests.tiny import save_lora

    base = base_of("llama")
    pair = open_pair(base, save_lora(tmp_path, base), dtype="float32", device="cpu")
    ids = torch.tensor([[1, 5, 9]])
    pair.trunk("tuned", ids, torch.ones_like(ids))
    with pair.open("base") as model:
        found = score(model, samples(), pad=0).of("snip")
    from transformers import AutoModelForCausalLM

    wanted = score(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), samples(), pad=0).of(
        "snip"
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(scores, wanted[name]) for name, scores in found.items())


def test_bfloat16_is_summed_in_float32():
    model, some = tiny_model("llama", d=64), samples((16,) * 24)
    exact = top(score(model, some, pad=0).of("snip"), 0.05, name="g")
    found = score(model.to(torch.bfloat16), some, pad=0).of("snip")
    assert {scores.dtype for scores in found.values()} == {torch.float32}
    same = [torch.isin(top(found, 0.05, name="g").of(m), exact.of(m)).double().mean() for m in exact.places]
    assert float(torch.stack(same).mean()) > 0.9


class Experts(nn.Module):
    """Two experts of linear layers that get their tokens as a list, and the first one twice."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(d, d) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        odd = (flat[:, 0] > 0).nonzero()[:, 0]
        even = (flat[:, 0] <= 0).nonzero()[:, 0]
        out = torch.zeros_like(flat)
        out = out.index_add(0, odd, self.experts[0](flat[odd])).index_add(
            0, even, self.experts[1](flat[even])
        )
        return (out + 0.5 * self.experts[0](out)).reshape(x.shape)


def test_experts_of_linear_layers_are_scored_sample_by_sample():
    """And in batches of one, as their tokens come without their places; nothing counts twice by that."""
    model = tiny_model("llama").double()
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.mlp = Experts(32).double()
    scores, alone = (score(model, samples(), pad=0, batch=batch) for batch in (4, 1))
    assert all(torch.equal(norms, alone.columns()[name]) for name, norms in scores.columns().items())
    found = scores.of("snip")
    used = {name: layer for name, layer in linear_layers(model)[0].items() if "experts.2" not in name}
    assert len(used) == 12
    weights: dict[str, Any] = {name: layer.module.weight for name, layer in used.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sample in samples():
        (loss,) = sample_losses(model, collate([sample], 0))
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient.abs()
    for name, weight in weights.items():
        wanted = (weight * total[name]).abs().detach()
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-10 * float(wanted.max()))
    assert not any(bool(found[f"model.layers.{i}.mlp.experts.2"].any()) for i in (0, 1))


def test_fused_experts_are_told_as_skipped():
    found = score(tiny_model("mixtral"), samples(), pad=0)
    assert len(found.shapes) == 8
    assert "model.layers.0.mlp.experts.down_proj" in found.skipped
    assert score(tiny_model("llama"), samples(), pad=0).skipped == ()


def test_nothing_to_score_by_is_told():
    model, bare = tiny_model("llama"), Example(np.array([1, 2, 3], np.int32), np.zeros(3, bool))
    for wrong, error, said in (
        ({"samples": [*samples(), bare]}, DataError, "Sample 6 has no response"),
        ({"samples": samples((4,))}, DataError, "too few"),
        ({"samples": [], "halves": False}, DataError, "too few"),
        ({"kinds": ("magnitude",)}, BadInput, "no score 'magnitude'"),
        ({"kinds": ()}, BadInput, "at least one"),
        ({"batch": 0}, BadInput, "at least one"),
    ):
        given: dict[str, Any] = {"samples": samples(), "pad": 0} | wrong
        with pytest.raises(error, match=said):
            score(model, given.pop("samples"), **given)
    found = score(model, samples(), pad=0, halves=False)
    with pytest.raises(BadInput, match="without halves"):
        found.of("snip", 0)
    with pytest.raises(BadInput, match="no score 'wanda'"):
        found.of("wanda")
    with pytest.raises(KeyError):
        found.of("snip")["lm_head"]
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        score(model, samples(), pad=0)


def test_a_merged_adapter_is_refused():
    model = adapted(tiny_model("llama"))
    model.merge_adapter()
    with pytest.raises(BadInput, match="unmerge it"):
        score(model, samples(), pad=0)


def test_a_quantised_base_is_scored_as_it_computes():
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is in the extra train")
    quantised, plain = tiny_model("llama", d=64), tiny_model("llama", d=64)
    for name, layer in linear_layers(quantised)[0].items():
        folder, _, last = name.rpartition(".")
        old: Any = layer.module
        new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32)
        new.weight = bnb.nn.Params4bit(old.weight.data.clone(), requires_grad=False, quant_type="nf4")
        setattr(quantised.get_submodule(folder), last, new.to("cpu"))
    quantised.eval()
    found = score(quantised, samples(), pad=0)
    layers = linear_layers(quantised)[0]
    for name, layer in linear_layers(plain)[0].items():
        held: Any = layer.module
        held.weight.data = weight_of(layers[name].module).clone()
    wanted, again = by_autograd(plain, samples()), score(quantised, samples(), pad=0)
    for name, scores in found.of("snip").items():
        torch.testing.assert_close(scores, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].max()))
        assert torch.equal(again.of("snip")[name], scores)
