"""Controls: as many, of the same kind, never the group's own; and what matching on scales is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.weights import controls
from finetrace.weights.controls import Matched, fully_matched, magnitude_matched, random_like
from finetrace.weights.groups import Group, top

SHAPE = (64, 96)


def made(seed: int, fraction: float = 0.05, shape: tuple[int, int] = SHAPE):
    """A group by a score of |W| x row x column scales, its weights and the column scales, of two matrices."""
    generator = torch.Generator().manual_seed(seed)
    weights, columns, score = {}, {}, {}
    for name in ("a", "b"):
        weights[name] = torch.randn(shape, generator=generator)
        columns[name] = torch.randn(shape[1], generator=generator).mul(0.3).exp()
        row = torch.randn(shape[0], 1, generator=generator).mul(0.3).exp()
        score[name] = weights[name].abs() * columns[name] * row * torch.rand(shape, generator=generator)
    return top(score, fraction, name="safety_top"), weights, columns


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


@given(st.integers(0, 999), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from(["entries", "rows"]))
@settings(max_examples=20, deadline=None)
def test_random_ones_are_as_many_and_others(seed: int, fraction: float, unit):
    rng = np.random.default_rng(seed)
    ends = {m: SHAPE[0] if unit == "rows" else math.prod(SHAPE) for m in "ab"}
    own, other = (
        Group(name, unit, {m: torch.from_numpy(np.sort(rng.choice(n, int(fraction * n), replace=False))) for m, n in ends.items()})
        for name in ("g", "other")
    )  # fmt: skip
    found = random_like(own, dict.fromkeys(ends, SHAPE), seed, [other])
    for m in ends:
        ids = set(found.of(m).tolist())
        assert len(ids) == len(found.of(m)) == len(own.of(m))
        assert not ids & (set(own.of(m).tolist()) | set(other.of(m).tolist()))
        assert found.of(m).tolist() == sorted(ids)
        assert 0 <= min(ids) <= max(ids) < ends[m]
    again = random_like(own, dict.fromkeys(ends, SHAPE), seed, [other])
    alone = random_like(Group("g", unit, {"b": own.of("b")}), {"b": SHAPE}, seed, [other])
    assert torch.equal(again.of("b"), found.of("b"))
    assert torch.equal(alone.of("b"), found.of("b"))
    another = random_like(own, dict.fromkeys(ends, SHAPE), seed + 1, [other])
    assert not all(torch.equal(another.of(m), found.of(m)) for m in ends)


def test_where_fewer_are_left_there_are_fewer():
    most = Group("g", "rows", {"m": torch.arange(7)})
    assert random_like(most, {"m": (10, 2)}, 0).counts() == {"m": 3}


def require_sound(found: Matched, group: Group, excluded: Group | None = None) -> None:
    """What holds of any matching."""
    for module, pairs in found.pairs.items():
        treated, control = pairs.unbind(1)
        assert torch.equal(treated.sort().values, found.treated.of(module))
        assert torch.equal(control.sort().values, found.control.of(module))
        assert (
            len(set(treated.tolist()))
            == len(set(control.tolist()))
            == len(pairs)
            == len(found.strata[module])
        )
        assert set(treated.tolist()) <= set(group.of(module).tolist())
        taken = set(group.of(module).tolist()) | (set(excluded.of(module).tolist()) if excluded else set())
        assert not set(control.tolist()) & taken
    assert found.rate == pytest.approx(len(found.treated) / len(group))
    assert len(found.treated) == len(found.control)


@given(st.integers(0, 999), st.sampled_from([0.01, 0.1, 0.4]))
@settings(max_examples=15, deadline=None)
def test_a_full_match_is_within_row_column_scale_and_size(seed: int, fraction: float):
    group, weights, columns = made(seed, fraction)
    excluded = random_like(group, shapes(weights), seed)
    found = fully_matched(group, weights, columns, seed, [excluded])
    require_sound(found, group, excluded)
    for module, pairs in found.pairs.items():
        rows, places = pairs // SHAPE[1], pairs % SHAPE[1]
        assert torch.equal(rows[:, 0], rows[:, 1])
        scale, size = columns[module][places].log(), weights[module].flatten()[pairs].abs().log2()
        widest = controls.LEVELS[-1]
        assert float((scale[:, 0] - scale[:, 1]).abs().max()) <= widest[0] + 1e-5
        assert float((size[:, 0] - size[:, 1]).abs().max()) <= widest[1] + 1e-5
        # As many of a stratum on both sides, none of two rows.
        for stratum in found.strata[module].unique():
            assert len(rows[found.strata[module] == stratum].unique()) == 1
    again = fully_matched(group, weights, columns, seed, [excluded])
    assert all(torch.equal(again.pairs[m], found.pairs[m]) for m in found.pairs)


@given(st.integers(0, 999), st.sampled_from([0.01, 0.1]))
@settings(max_examples=15, deadline=None)
def test_a_match_of_sizes_is_within_quantiles(seed: int, fraction: float):
    group, weights, _ = made(seed, fraction)
    found = magnitude_matched(group, weights, seed, bins=10)
    require_sound(found, group)
    for module, pairs in found.pairs.items():
        size = weights[module].flatten().abs()[pairs]
        for stratum in found.strata[module].unique():
            inside = size[found.strata[module] == stratum]
            own = weights[module].flatten().abs()[group.of(module)]
            share = ((own >= inside.min()) & (own <= inside.max())).double().mean()
            assert float(share) <= 0.1 + 2 / len(own) + 1e-9


def test_rows_are_matched_by_their_norm():
    _, weights, columns = made(3)
    weights["a"] = weights["a"] * torch.linspace(0.5, 2, SHAPE[0])[:, None]
    chosen = Group("g", "rows", {"a": torch.arange(30, 50, 2)})
    found = magnitude_matched(chosen, weights, 0)
    require_sound(found, chosen)
    assert set(found.balance) == {"row norm"}
    assert abs(found.balance["row norm"]) < 0.2 < found.before["row norm"]
    with pytest.raises(BadInput, match="own row"):
        fully_matched(chosen, weights, columns, 0)


def test_the_balance_is_the_standardised_difference():
    group, weights, columns = made(5, 0.1)
    found = fully_matched(group, weights, columns, 0)
    wanted: dict[str, list[float]] = {}
    for name in ("log weight", "row norm", "column scale"):
        n = gap = variance = pairs = left = 0.0
        for module, weight in weights.items():
            values = {
                "log weight": weight.double().abs().log(),
                "row norm": weight.double().norm(dim=1).log()[:, None].expand(SHAPE),
                "column scale": columns[module].double().log().expand(SHAPE),
            }[name].flatten()
            inside = group.mask(module, SHAPE).flatten()
            n += int(inside.sum())
            gap += int(inside.sum()) * float(values[inside].mean() - values[~inside].mean())
            variance += int(inside.sum()) * float(values.var(correction=0))
            left += float((values[found.pairs[module][:, 0]] - values[found.pairs[module][:, 1]]).sum())
            pairs += len(found.pairs[module])
        spread = math.sqrt(variance / n)
        wanted[name] = [gap / n / spread, left / pairs / spread]
    for name, (before, after) in wanted.items():
        assert found.before[name] == pytest.approx(before, rel=1e-4, abs=1e-6)
        assert found.balance[name] == pytest.approx(after, rel=1e-4, abs=1e-6)
    assert found.balance["row norm"] == pytest.approx(0, abs=1e-12)
    assert abs(found.balance["column scale"]) < 0.15 < found.before["column scale"]


def test_what_has_no_partner_is_left_out():
    weights, columns = {"m": torch.ones(2, 4)}, {"m": torch.tensor([1.0, 1.0, 9.0, 1.0])}
    # Row 0: column 2 stands alone; of row 1, three of four are in the group.
    group = Group("g", "entries", {"m": torch.tensor([0, 2, 4, 5, 7])})
    found = fully_matched(group, weights, columns, 0)
    assert found.rate == pytest.approx(1 / 5)
    assert found.treated.of("m").tolist() == [0]
    nothing = fully_matched(
        Group("g", "entries", {"m": torch.empty(0, dtype=torch.int64)}), weights, columns, 0
    )
    assert (nothing.rate, nothing.balance, len(nothing.control)) == (None, {}, 0)
    assert (
        magnitude_matched(Group("g", "entries", {"m": torch.empty(0, dtype=torch.int64)}), weights, 0).rate
        is None
    )


def test_zero_and_equal_weights_are_no_trouble():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator).mul(2).round().to(torch.bfloat16)
    columns = {"m": torch.cat([torch.zeros(4), torch.ones(SHAPE[1] - 4)])}
    group = random_like(Group("g", "entries", {"m": torch.arange(300)}), {"m": SHAPE}, 0)
    found = fully_matched(group, {"m": weight}, columns, 0)
    require_sound(found, group)
    assert found.rate is not None
    assert found.rate > 0.95
    assert all(math.isfinite(value) for value in (*found.balance.values(), *found.before.values()))
    require_sound(magnitude_matched(group, {"m": weight}, 0), group)


def test_many_rows_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch):
    group, weights, columns = made(1, 0.1)
    whole = fully_matched(group, weights, columns, 0)
    monkeypatch.setattr(controls, "blocks", lambda rows, _: ((i, i + 1) for i in range(rows)))
    found = fully_matched(group, weights, columns, 0)
    require_sound(found, group)
    assert torch.equal(found.treated.of("a"), whole.treated.of("a"))
    assert all(len(found.strata[m].unique()) == len(whole.strata[m].unique()) for m in found.strata)


def test_a_scale_and_one_unit_are_needed():
    group, weights, columns = made(0)
    with pytest.raises(BadInput, match="column scale of b"):
        fully_matched(group, weights, {"a": columns["a"]}, 0)
    with pytest.raises(BadInput, match="one unit"):
        random_like(group, shapes(weights), 0, [Group("rows", "rows", {})])


def log_ratio(change: torch.Tensor, treated: Group, control: Group) -> float:
    """Half the log ratio of mean squared changes: 0 where both moved alike."""
    squares = change.double().square().flatten()
    return 0.5 * math.log(float(squares[treated.of("m")].mean() / squares[control.of("m")].mean()))


def test_a_change_that_shares_scales_only_deceives_all_but_the_full_match():
    """A SNIP group and an update that knows nothing of it, but shares rows' and columns' scales, as gradients do."""
    found: dict[str, list[float]] = {"random": [], "size": [], "full": []}
    shape = (256, 1024)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        weight, row, column = normal(*shape), normal(shape[0]).mul(0.4).exp(), normal(shape[1]).mul(0.4).exp()
        gradient = sum((normal(*shape).abs() for _ in range(8)), start=torch.zeros(shape))
        score = weight.abs() * gradient * row[:, None] * column
        change = row[:, None] * (normal(shape[0], 32) @ normal(32, shape[1])) * column
        group = top({"m": score}, 0.02, name="safety_top")
        plain = random_like(group, {"m": shape}, seed)
        size = magnitude_matched(group, {"m": weight}, seed)
        full = fully_matched(group, {"m": weight}, {"m": column}, seed)
        found["random"].append(log_ratio(change, group, plain))
        found["size"].append(log_ratio(change, size.treated, size.control))
        found["full"].append(log_ratio(change, full.treated, full.control))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    error = {name: float(np.std(values, ddof=1) / math.sqrt(len(values))) for name, values in found.items()}
    assert mean["random"] - 3 * error["random"] > 0.4
    assert mean["size"] - 3 * error["size"] > 0.4
    assert abs(mean["full"]) < 0.02 + 2 * error["full"] < 0.06
