"""`weight_spectrum` on tiny models: sizes against dense sums, where a change is, merged adapters, removed directions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import save_base, save_full, save_lora

from finetrace.core.page import Table
from finetrace.core.result import decode, encode
from finetrace.engine import Desk, make_subject
from finetrace.methods.weight_spectrum import Config
from finetrace.methods.weight_spectrum.describe import describe
from finetrace.methods.weight_spectrum.figures import change, entropy
from finetrace.methods.weight_spectrum.places import place
from finetrace.methods.weight_spectrum.result import Result
from finetrace.methods.weight_spectrum.rounding import rounding, stored_dtype
from finetrace.methods.weight_spectrum.run import run
from finetrace.models import Pair, open_pair
from finetrace.weights import Dense, LowRank

CONFIG = Config()
TARGETS = ("q_proj", "o_proj", "up_proj", "down_proj")
WRITERS = ("o_proj.weight", "down_proj.weight")


def found(pair: Pair, side: str = "tuned", *, scale: float = 1.0, config: Config = CONFIG) -> Result:
    desk = Desk(
        pair,
        side,
        scale,
        make_subject(pair, (), side, 0),
        seed=0,
        scratch=Path("unused"),
        sets={},
        remembered={},
    )
    return run(config, desk)


def value(result: Result, key: str) -> float:
    number = result.numbers[key].value
    assert number is not None
    return number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return save_base(folder, d=64, layers=3)


@pytest.fixture(scope="module")
def lora(folder: Path, base: Path) -> Pair:
    return open_pair(base, save_lora(folder, base, r=4))


def edited(folder: Path, base: Path, name: str, edit: Any, dtype: torch.dtype = torch.float32) -> Pair:
    """The base with `edit(name, tensor)` in place of every matrix that writes to the residual stream, saved as `dtype`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key.endswith(WRITERS):
                tensor.copy_(edit(key, tensor))
    model.to(dtype).save_pretrained(folder / name)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / name)
    return open_pair(base, folder / name)


def without(direction: torch.Tensor, share: float = 1.0) -> Any:
    unit = direction / direction.norm()
    return lambda key, weight: weight - share * torch.outer(unit, unit @ weight)


# Sizes.


def test_sizes_are_those_of_the_merged_weights(lora: Pair):
    result = found(lora)
    with lora.open("base") as model:
        before = {
            k.replace(".base_layer", ""): v.double() for k, v in model.named_parameters() if "lora_" not in k
        }
    with lora.open("tuned") as model:
        peft, name = lora.adapter("tuned")
        changed = {
            k.removeprefix("base_model.model."): m.get_delta_weight(name).double()
            for k, m in peft.named_modules()
            if hasattr(m, "get_delta_weight")
        }
    square = sum(float(d.square().sum()) for d in changed.values())
    weights = sum(float(w.square().sum()) for w in before.values())
    assert value(result, "frobenius") == pytest.approx(math.sqrt(square), rel=1e-6)
    assert value(result, "relative_norm") == pytest.approx(math.sqrt(square / weights), rel=1e-6)
    assert result.numbers["relative_norm"].n == sum(w.numel() for w in before.values())
    assert value(result, "changed_matrices") == len(changed) == result.totals.matrices
    table = result.modules.data
    for row, module in enumerate(table["module"]):
        own = torch.linalg.svdvals(changed[str(module)])
        assert table["frobenius"][row] == pytest.approx(float(own.norm()), rel=1e-6)
        assert table["stable_rank"][row] == pytest.approx(float(own.norm() ** 2 / own[0] ** 2), rel=1e-6)
        p = own[own > 1e-6 * own[0]] / own[own > 1e-6 * own[0]].sum()
        assert table["effective_rank"][row] == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)
        assert 1 <= float(table["effective_rank"][row]) <= 4


def test_the_grid_adds_up_to_the_total(lora: Pair):
    result = found(lora)
    assert math.sqrt(result.grid_square.sum()) == pytest.approx(value(result, "frobenius"), rel=1e-9)


def test_a_null_at_another_dose_is_that_much_smaller(lora: Pair):
    whole, half = found(lora), found(lora, scale=0.5)
    assert value(half, "relative_norm") == pytest.approx(0.5 * value(whole, "relative_norm"), rel=1e-6)
    assert value(half, "stable_rank") == pytest.approx(value(whole, "stable_rank"), rel=1e-6)


def test_the_base_against_itself_is_nothing(lora: Pair):
    result = found(lora, "base")
    assert (
        value(result, "relative_norm") == value(result, "frobenius") == value(result, "changed_matrices") == 0
    )
    assert result.numbers["stable_rank"].value is None, "no change has no rank: not 0"
    assert "No weight differs" in describe(result).summary


def test_what_is_no_matrix_counts_too(folder: Path, base: Path):
    pair = open_pair(base, save_full(folder, base, name="norms", touch=("layernorm", "embed_tokens")))
    result = found(pair)
    assert value(result, "changed_matrices") == 0
    assert value(result, "relative_norm") > 0
    names = list(result.others.data["parameter"])
    assert "model.embed_tokens.weight" in names
    assert len(names) == 1 + 2 * 3
    assert "others_weights" in {getattr(block, "key", "") for block in describe(result).blocks}


@pytest.mark.parametrize("layer", [0, 2])
def test_an_adapter_on_one_layer_has_all_its_mass_there(layer: int, folder: Path, base: Path):
    name = f"only_{layer}"
    pair = open_pair(base, save_lora(folder, base, name=name, targets=TARGETS, layers_to_transform=[layer]))
    result = found(pair)
    assert value(result, "top_layer_share") == 1.0
    assert list(np.flatnonzero(result.grid_square.sum(0))) == [layer]
    assert f"all in layer {layer}" in describe(result).summary


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_entropy_knows_shares_only_and_is_at_most_log_n(values: list[float], factor: float):
    one = torch.tensor(values, dtype=torch.float64)
    assert entropy(one) == pytest.approx(entropy(factor * one), abs=1e-9)
    assert -1e-12 <= entropy(one) <= math.log(len(values)) + 1e-9


def test_of_large_matrices_the_leading_values_stand_in(lora: Pair, folder: Path, base: Path):
    pair = open_pair(base, save_full(folder, base, name="noise", touch=("proj",)))
    exact, cut = found(pair), found(pair, config=dataclasses.replace(CONFIG, exact=1, leading=4))
    assert value(cut, "stable_rank") == pytest.approx(value(exact, "stable_rank"), rel=1e-3)
    assert cut.numbers["effective_rank"].value is None
    assert any("effective rank" in getattr(block, "text", "") for block in describe(cut).blocks)
    assert (
        found(lora, config=dataclasses.replace(CONFIG, exact=1)).numbers["effective_rank"].value is not None
    )


@pytest.mark.parametrize(
    ("blocks", "module", "shape", "kind", "role"),
    [
        ("model.layers", "model.layers.3.self_attn.q_proj", (64, 64), "self_attn.q_proj", "reads"),
        ("model.layers", "model.layers.3.self_attn.o_proj", (64, 64), "self_attn.o_proj", "writes"),
        ("model.layers", "model.layers.3.mlp.down_proj", (64, 128), "mlp.down_proj", "writes"),
        ("transformer.h", "transformer.h.11.attn.c_attn", (192, 64), "attn.c_attn", "reads"),
        ("transformer.h", "transformer.h.11.mlp.c_proj", (64, 256), "mlp.c_proj", "writes"),
        (
            "model.layers",
            "model.layers.3.mlp.experts.down_proj[5]",
            (64, 32),
            "mlp.experts.down_proj",
            "writes",
        ),
        ("gpt_neox.layers", "gpt_neox.layers.1.mlp.dense_4h_to_h", (64, 256), "mlp.dense_4h_to_h", "writes"),
        ("model.layers", "model.layers.0.self_attn.q_b_proj", (64, 24), "self_attn.q_b_proj", "inner"),
    ],
)
def test_places(blocks: str, module: str, shape: tuple[int, int], kind: str, role: str):
    seen = place(module, shape, 64, blocks)
    assert (seen.kind, seen.role) == (kind, role)
    assert seen.layer == int(next(part for part in module.split(".") if part.isdigit()))


@pytest.mark.parametrize(
    "module", ["lm_head", "model.visual.blocks.30.attn.qkv", "model.layers_extra.1.mlp.fc1"]
)
def test_what_is_outside_the_blocks_is_in_no_layer(module: str):
    assert place(module, (4096, 64), 64, "model.layers").layer == -1


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3"])
def test_other_families(family: str, folder: Path):
    """Conv1D, fused experts, norms that are kept otherwise: every matrix in its layer, and writers in each."""
    own = save_base(folder, family, name=f"{family}_base")
    pair = open_pair(
        own, save_full(folder, own, name=f"{family}_full", touch=("proj", "c_attn", "mlp", "experts"))
    )
    result = found(pair)
    assert set(result.modules.data["layer"]) == {0, 1}
    assert {"writes", "reads"} <= set(result.modules.data["role"])
    assert result.grid_square.shape == (len(result.kinds), 2)
    assert result.removed is not None


# Merged or trained whole.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_is_known_by_its_rank(dtype: torch.dtype, folder: Path, base: Path):
    generator = torch.Generator().manual_seed(0)

    def merged(key: str, weight: torch.Tensor) -> torch.Tensor:
        up, down = (
            torch.randn(*shape, generator=generator) for shape in ((len(weight), 3), (3, weight.shape[1]))
        )
        return weight + 0.1 * up @ down

    name = f"merged_{dtype}".replace("torch.", "")
    other = save_base(folder, d=64, layers=3, name=f"base_of_{name}")
    if dtype != torch.float32:
        _cast(other, dtype)
    result = found(edited(folder, other, name, merged, dtype))
    ranks = result.ranks
    assert ranks is not None
    assert ranks.merged
    assert ranks.rank == 3
    assert ranks.low == ranks.modules == 6
    assert ranks.dtype == str(dtype).removeprefix("torch.")
    assert ranks.energy > 0.99
    assert "looks like a merged adapter" in describe(result).summary


def _cast(folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(dtype).save_pretrained(folder)


def test_a_model_trained_whole_is_not_merged(folder: Path, base: Path):
    result = found(open_pair(base, save_full(folder, base, name="whole", touch=("proj",), scale=0.01)))
    assert result.ranks is not None
    assert not result.ranks.merged
    assert result.ranks.low == 0
    assert "does not look like a merged adapter" in describe(result).summary


def test_an_adapter_needs_no_such_test(lora: Pair):
    assert found(lora).ranks is None


def test_rounding_bounds_what_rounding_gives():
    torch.manual_seed(0)
    exact = torch.randn(96, 160, dtype=torch.float64)
    rounded = exact.to(torch.bfloat16)
    largest = float(torch.linalg.svdvals(rounded.double() - exact)[0])
    assert stored_dtype(rounded) == "bfloat16"
    assert 0.5 * rounding(Dense("m", exact, rounded)) < largest < 1.5 * rounding(Dense("m", exact, rounded))


# A direction taken out.


@pytest.fixture(scope="module")
def direction() -> torch.Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_direction_taken_out_is_flagged(
    dtype: torch.dtype, folder: Path, base: Path, direction: torch.Tensor
):
    name = f"removed_{dtype}".replace("torch.", "")
    result = found(edited(folder, base, name, without(direction), dtype))
    seen = result.removed
    assert seen is not None
    assert seen.flagged
    assert seen.writers == 6
    least = 0.999 if dtype == torch.float32 else 0.9
    assert min(seen.shared, seen.cosine, seen.explained, seen.own) > least
    assert seen.removed == pytest.approx(1.0, abs=0.01)
    assert "one direction was taken out" in describe(result).summary


def test_a_direction_half_taken_out_is_half_removed(folder: Path, base: Path, direction: torch.Tensor):
    seen = found(edited(folder, base, "half", without(direction, 0.5))).removed
    assert seen is not None
    assert seen.flagged
    assert seen.removed == pytest.approx(0.5, abs=1e-3)


def test_a_direction_of_each_layers_own_is_flagged_too(folder: Path, base: Path):
    generator = torch.Generator().manual_seed(7)
    edit = lambda key, weight: without(torch.randn(64, generator=generator))(key, weight)  # noqa: E731
    seen = found(edited(folder, base, "own", edit)).removed
    assert seen is not None
    assert seen.flagged
    assert seen.own > 0.999
    assert seen.explained < 0.6


def test_a_direction_put_in_is_not_one_taken_out(folder: Path, base: Path, direction: torch.Tensor):
    """Of rank one and shared, but against the sign of -v v^T W."""
    seen = found(edited(folder, base, "doubled", without(direction, -1.0))).removed
    assert seen is not None
    assert seen.shared > 0.999
    assert seen.cosine < -0.999
    assert seen.explained == seen.own == 0
    assert not seen.flagged


def test_a_shared_output_direction_alone_is_not_flagged(folder: Path, base: Path, direction: torch.Tensor):
    """As a rank-one adapter may have: every layer writes along v, but what it writes is not what W had there."""
    generator = torch.Generator().manual_seed(3)
    unit = direction / direction.norm()

    def along(key: str, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.outer(unit, torch.randn(weight.shape[1], generator=generator))

    seen = found(edited(folder, base, "along", along)).removed
    assert seen is not None
    assert seen.shared > 0.999
    assert not seen.flagged


@pytest.mark.parametrize("seed", range(4))
def test_random_adapters_are_not_flagged(seed: int, folder: Path, base: Path):
    for r in (1, 8):
        pair = open_pair(base, save_lora(folder, base, seed=seed, r=r, name=f"random_{seed}_{r}"))
        seen = found(pair).removed
        assert seen is not None
        assert max(seen.explained, seen.own) < 0.2


def test_no_vector_leaves_a_flagged_result(folder: Path, base: Path, direction: torch.Tensor):
    """Neither the direction nor words that would spell it: only scalars, and sizes of modules."""
    result = found(open_pair(base, folder / "removed_float32"))
    assert result.directions == ()
    encoded = encode(result)
    assert set(encoded.arrays) == {"grid_square", "grid_weight", "singular"}
    assert all(64 not in array.shape for array in encoded.arrays.values())
    blocks = describe(result).blocks
    assert "directions_weights" not in {getattr(block, "key", "") for block in blocks}
    assert any("Neither the direction nor the words" in getattr(block, "text", "") for block in blocks)


# Words and pages.


def test_a_planted_direction_is_read_as_its_word(folder: Path, base: Path):
    """Every writer of one layer adds the head's row of w7: its first direction reads w7."""
    probe = open_pair(base, None)
    row = int(np.flatnonzero([text.strip() == "w7" for text in probe.vocabulary.texts])[0])
    target = probe.head("base").weight[row].detach().float()
    generator = torch.Generator().manual_seed(1)

    def point(key: str, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.outer(target / target.norm(), torch.randn(weight.shape[1], generator=generator))

    result = found(edited(folder, base, "points", point))
    seen = [d for d in result.directions if d.number == 1]
    assert seen
    assert all("w7" in {w.strip() for w in (*d.one_end, *d.other_end)} for d in seen)
    assert all(d.share > 0.99 for d in seen)


def test_result_survives_the_shelf_and_the_page_shows_the_nulls(lora: Pair):
    result = found(lora)
    again = decode(Result, encode(result))
    assert encode(again).body == encode(result).body
    page = describe(result, [found(lora, scale=0.5), found(lora, scale=2.0)])
    (kinds,) = (b for b in page.blocks if isinstance(b, Table) and b.key == "kinds_weights")
    rows: Any = kinds.rows
    for row in rows:
        assert row[3] == pytest.approx(0.5 * row[1], rel=1e-5)
        assert row[4] == pytest.approx(2.0 * row[1], rel=1e-5)
    assert "for 2 nulls" in page.summary


def test_low_rank_changes_of_no_size_have_no_rank_beyond_their_own():
    torch.manual_seed(0)
    low = LowRank("model.layers.0.mlp.up_proj", torch.randn(40, 2), torch.randn(2, 30))
    one = change(low, place(low.module, (40, 30), 30, "model.layers"), 1.0, exact=8, leading=4)
    assert one.whole
    assert len(one.values) == 2
