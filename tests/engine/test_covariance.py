"""Streaming covariances against dense float64, with a mean that float32 alone would not survive, and merged in any cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.engine.covariance import (
    Covariance,
    CrossCovariance,
    components,
    effective_rank,
    linear_cka,
    merged,
    participation_ratio,
    principal_angles,
)

D = 24


def rows(n: int, seed: int = 0, d: int = D, mean: float = 50.0) -> Tensor:
    """float32 rows with variances that fall off, about a mean that is large beside them."""
    made = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=made, dtype=torch.float64))[0]
    scales = torch.logspace(0, -1, d, dtype=torch.float64)
    varied = torch.randn(n, d, generator=made, dtype=torch.float64) * scales @ basis
    return (varied + mean * torch.randn(d, generator=made, dtype=torch.float64)).float()


def seen(x: Tensor, batch: int = 100, shift: Tensor | None = None) -> Covariance:
    found = Covariance(x.shape[1], shift)
    for part in x.split(batch):
        found.see(part)
    return found


def dense(x: Tensor) -> Tensor:
    return torch.from_numpy(np.cov(x.double().numpy().T, bias=True))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_equals_a_dense_decomposition_where_unshifted_float32_does_not() -> None:
    x = rows(6000, mean=500.0)
    exact = components(dense(x), D)
    found = components(seen(x).matrix(), D)
    assert len(found.values) == D
    assert float((found.values / exact.values - 1).abs().max()) < 1e-5
    for k in (1, 5, 12):
        assert float(principal_angles(found.vectors[:k], exact.vectors[:k]).max()) < 1e-4

    mean = x.mean(0)
    plain = (x.T @ x) / len(x) - torch.outer(mean, mean)
    assert float((components(plain, 5).values / exact.values[:5] - 1).abs().max()) > 1e-2


def test_sums_keep_what_float32_would_lose() -> None:
    """A few short rows after many long ones: 1 beside 2^44."""
    found = Covariance(1, torch.zeros(1))
    found.see(torch.full((16, 1), 2.0**20))
    for _ in range(3):
        found.see(torch.ones(1, 1))
    assert float(found.state()["outer"]) == 2.0**44 + 3
    found.see(torch.full((1, 1), 0.25))
    assert float(found.state()["sums"]) == 2.0**24 + 3.25


def test_mean_second_moment_and_sample_covariance() -> None:
    x = rows(500)
    found = seen(x)
    wide = x.double()
    assert torch.allclose(found.mean, wide.mean(0), rtol=1e-8)
    assert torch.allclose(found.second_moment(), wide.T @ wide / len(x), rtol=1e-8)
    assert torch.allclose(found.matrix(ddof=1), torch.cov(wide.T), rtol=1e-4, atol=1e-7)
    assert torch.equal(found.matrix(), found.matrix().T)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(0, 5),
    st.booleans(),
)
def test_merged_shards_are_the_whole(sizes: list[int], seed: int, shared: bool) -> None:
    x = rows(sum(sizes), seed, d=6)
    shards = x.split(sizes)
    shift = x[0] if shared else None
    whole = Covariance(6, shift)
    for shard in shards:
        whole.see(shard)
    parts = []
    for shard in shards:
        part = Covariance(6, shift)
        part.see(shard)
        parts.append(part)
    once, again = merged(parts), merged(parts)
    assert once is not None
    assert again is not None
    assert once.count == whole.count == len(x)
    assert same(once.state(), again.state())
    # One shift: float64's rounding alone. Each shard's own: that of float32 in the rows less their shift as well.
    close = 1e-12 if shared else 1e-5
    assert torch.allclose(once.mean, whole.mean, rtol=1e-12 if shared else 1e-7)
    assert torch.allclose(once.matrix(), whole.matrix(), rtol=close, atol=close)


def test_merging_moves_sums_between_far_shifts() -> None:
    x = rows(400)
    near, far = seen(x[:200]), seen(x[200:], shift=x.mean(0) + 3.0)
    near.merge(far)
    assert torch.allclose(near.matrix(), dense(x), rtol=1e-4, atol=1e-5)
    empty = Covariance(D)
    empty.merge(near)
    assert same(empty.state(), near.state())
    near.merge(Covariance(D))
    assert same(empty.state(), near.state())


def test_state_restores_to_the_bit_and_goes_on_alike() -> None:
    x = rows(300)
    straight, first = seen(x[:200]), seen(x[:200])
    resumed = Covariance(D)
    resumed.restore(first.state())
    assert same(resumed.state(), first.state())
    for one in (straight, resumed):
        one.see(x[200:])
    assert same(resumed.state(), straight.state())
    assert torch.equal(resumed.matrix(), straight.matrix())
    fresh = Covariance(D)
    fresh.restore(Covariance(D).state())
    fresh.see(x)
    assert fresh.count == 300


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    x = rows(50)
    spoilt = x.clone()
    spoilt[0, 3], spoilt[25, 0], spoilt[9, 1] = torch.inf, torch.nan, 1e30
    found = seen(spoilt, batch=10)
    assert (found.count, found.left_out) == (47, 3)
    kept = torch.tensor([i not in (0, 25, 9) for i in range(50)])
    assert torch.allclose(found.matrix(), dense(x[kept]), rtol=1e-4, atol=1e-6)
    nothing = seen(torch.full((4, D), torch.nan))
    assert (nothing.count, nothing.left_out, nothing.rank_limit) == (0, 4, 0)
    assert bool(nothing.mean.isnan().all())
    with pytest.raises(BadInput, match="no rows"):
        components(nothing.matrix(), 2)


def test_works_across_inference_mode() -> None:
    x = rows(200)
    with torch.inference_mode():
        inside = seen(x[:100] * 1.0)
        state = inside.state()
    inside.see(x[100:])
    other = Covariance(D)
    other.restore(state)
    other.see(x[100:])
    with torch.inference_mode():
        other.merge(inside)
    other.see(x)
    assert other.count == 600


def test_fewer_rows_than_width() -> None:
    found = seen(rows(5))
    assert found.rank_limit == 4
    got = components(found.matrix(), D)
    assert len(got.values) == 4
    exact = components(dense(rows(5)), 4)
    assert torch.allclose(got.values, exact.values, rtol=1e-4)


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(BadInput, match="width 3"):
        Covariance(4).see(torch.zeros(2, 3))
    with pytest.raises(BadInput, match="merged"):
        Covariance(4).merge(Covariance(3))
    with pytest.raises(BadInput, match="shift"):
        Covariance(4, torch.zeros(3))
    with pytest.raises(BadInput, match="row by row"):
        CrossCovariance(2, 2).see(torch.zeros(2, 2), torch.zeros(3, 2))


def crossed(x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> CrossCovariance:
    whole = CrossCovariance(x.shape[1], y.shape[1])
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        part = CrossCovariance(x.shape[1], y.shape[1])
        part.see(a, b)
        whole.merge(part)
    return whole


def test_cross_covariance_merges_resumes_and_gives_cka() -> None:
    x = rows(300, 1, d=8, mean=5.0)
    y = torch.cat([x[:, :3] * 2 + 7, rows(300, 2, d=2, mean=20.0)], 1)
    x[4, 0] = torch.nan
    found = crossed(x, y, (120, 80, 100))
    kept = torch.arange(300) != 4
    assert (found.count, found.first.left_out, found.second.left_out) == (299, 1, 1)
    wide = np.cov(x[kept].double().numpy().T, y[kept].double().numpy().T, bias=True)
    assert torch.allclose(found.matrix(), torch.from_numpy(wide[:8, 8:]), rtol=1e-4, atol=1e-5)
    a, b = (t[kept].double() - t[kept].double().mean(0) for t in (x, y))
    expected = float((a @ a.T * (b @ b.T)).sum() / ((a @ a.T).norm() * (b @ b.T).norm()))
    assert linear_cka(found.first.matrix(), found.second.matrix(), found.matrix()) == pytest.approx(
        expected, rel=1e-5
    )
    resumed = CrossCovariance(8, 5)
    resumed.restore(found.state())
    for one in (found, resumed):
        one.see(x, y)
    assert same(resumed.state(), found.state())


def test_cka_is_one_for_a_rotation_and_none_for_a_constant() -> None:
    x = rows(200, d=6, mean=1.0)
    turned = (x.double() @ torch.linalg.qr(torch.randn(6, 6).double())[0] * 3).float()
    found = crossed(x, turned, (200,))
    assert linear_cka(found.first.matrix(), found.second.matrix(), found.matrix()) == pytest.approx(
        1, abs=1e-5
    )
    still = crossed(x, torch.ones(200, 6), (200,))
    assert linear_cka(still.first.matrix(), still.second.matrix(), still.matrix()) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1.0, 1e-9]))
def test_principal_angles_agree_with_scipy(seed: int, k: int, l: int, apart: float) -> None:  # noqa: E741
    made = torch.Generator().manual_seed(seed)
    one = torch.randn(k, 7, generator=made, dtype=torch.float64)
    two = torch.randn(l, 7, generator=made, dtype=torch.float64)
    both = min(k, l)
    two[:both] = one[:both] + apart * two[:both]
    found = principal_angles(one, two)
    expected = np.sort(subspace_angles(one.T.numpy(), two.T.numpy()))
    assert np.allclose(found.numpy(), expected, rtol=1e-4, atol=1e-13)


def test_spread_of_variance() -> None:
    even = torch.eye(6, dtype=torch.float64) * 3
    assert participation_ratio(even) == pytest.approx(6)
    assert effective_rank(torch.linalg.eigvalsh(even)) == pytest.approx(6)
    one = torch.zeros(6, 6, dtype=torch.float64)
    one[2, 2] = 4.0
    assert participation_ratio(one) == pytest.approx(1)
    assert effective_rank(torch.linalg.eigvalsh(one)) == pytest.approx(1)
    assert participation_ratio(one * 0) is None
    assert effective_rank(one[0] * 0) is None


def test_directions_have_one_sign_and_rounding_is_no_direction() -> None:
    x = rows(500, d=5)
    turned = components(seen(-x).matrix(), 3)
    found = components(seen(x).matrix(), 3)
    assert torch.allclose(found.vectors, turned.vectors, atol=1e-5)
    assert bool((found.vectors.gather(1, found.vectors.abs().argmax(1, keepdim=True)) > 0).all())
    flat = torch.diag(torch.tensor([1.0, 1e-12, -1e-13], dtype=torch.float64))
    assert len(components(flat, 3).values) == 1
