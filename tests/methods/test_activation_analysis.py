"""activation_analysis against an independent dense computation in float64, and on states made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import subspace_angles
from tests.tiny import save_base, save_lora
from tests.worlds import rows
from torch import Tensor

import finetrace as ft
from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.page import Figure, Heatmap, Passage, Table, Warning
from finetrace.data import ROLES, build_corpus, read_rows
from finetrace.engine import Step, Subject
from finetrace.methods.activation_analysis import Config
from finetrace.methods.activation_analysis.alignment import cka_distance, compared, gram_sums
from finetrace.methods.activation_analysis.beside import beside, standing_out
from finetrace.methods.activation_analysis.describe import describe
from finetrace.methods.activation_analysis.estimates import alignments
from finetrace.methods.activation_analysis.figures import BANDS, QUANTITIES, band
from finetrace.methods.activation_analysis.observe import ActivationAnalysis, observer
from finetrace.methods.activation_analysis.result import Result
from finetrace.methods.activation_analysis.spaces import layers_kept

D, LAYERS = 8, 3
_TEMPLATE, _TEXT = ROLES.index("template"), ROLES.index("text")


# By hand.


def subject(slices: tuple[str, ...] = ("text", "other")) -> Subject:
    def none(*given: object, **more: object) -> Any:
        raise AssertionError("nothing of the head is asked for")

    return Subject(
        slices=slices, n_layers=LAYERS, d_model=D, vocab_size=9, seed=0,
        spell=lambda ids: tuple(f"t{i}" for i in ids), words=none, lens=none,
    )  # fmt: skip


def step(states: list[tuple[Tensor, Tensor]], lengths: list[int], *, first: int = 0) -> Step:
    """Texts of the given lengths; slices take turns. states: (base, other) [batch, pos, d_model] of each layer."""
    n, width = len(lengths), states[0][0].shape[1]
    position = torch.arange(width).expand(n, width)
    role = torch.full((n, width), _TEXT, dtype=torch.int8)
    role[:, 0] = _TEMPLATE
    return Step(
        row=torch.arange(first, first + n),
        key=np.random.default_rng(first).integers(0, 2**63, n, dtype=np.uint64),
        slice=torch.arange(n) % 2,
        ids=position.clone(),
        keep=position < torch.tensor(lengths)[:, None] - 1,
        role=role,
        position=position,
        next_id=position,
        hidden=lambda layer: states[layer],
    )


def states(n: int, width: int, seed: int, moved: float = 0.1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(LAYERS):
        base = torch.randn(n, width, D, generator=generator) + 1.0
        made.append((base, base + moved * torch.randn(n, width, D, generator=generator)))
    return made


def seen(*steps: Step, config: Config | None = None) -> ActivationAnalysis:
    made = observer(config or Config(), subject())
    for one in steps:
        made.see(one)
    return made


def unbiased(k: np.ndarray, other: np.ndarray) -> float:
    """HSIC by U-centred matrices, another way to write the estimator."""
    n = len(k)

    def centred(a: np.ndarray) -> np.ndarray:
        a = a - np.diag(np.diag(a))
        rows = a.sum(1) / (n - 2)
        a = a - rows[:, None] - rows[None] + a.sum() / ((n - 1) * (n - 2))
        return a - np.diag(np.diag(a))

    return float((centred(k) * centred(other)).sum() / (n * (n - 3)))


def dense_cka(pairs: list[tuple[np.ndarray, np.ndarray]], window: int) -> float:
    """1 - CKA of texts (base, other) [token, d], float64, first tokens already gone."""
    sums = np.zeros(3)
    for base, other in pairs:
        for start in range(0, len(base), window):
            x, y = (a[start : start + window].astype(np.float64) for a in (base, other))
            if len(x) >= 4:
                k, l = x @ x.T, y @ y.T  # noqa: E741
                sums += len(x) * np.array([unbiased(k, l), unbiased(k, k), unbiased(l, l)])
    return 1 - sums[0] / np.sqrt(sums[1] * sums[2])


def spans(texts: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    """The tokens of each text, and where they end among all."""
    counts = [len(text[0]) for text in texts]
    return list(zip(counts, np.cumsum(counts).tolist(), strict=True))


def corpus_cka(base: np.ndarray, other: np.ndarray) -> float:
    """1 - linear CKA by inner products of tokens, all together."""
    x, y = (rows - rows.mean(0) for rows in (base, other))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return float(1 - (k * l).sum() / (np.linalg.norm(k) * np.linalg.norm(l)))


def test_every_figure_is_that_of_the_dense_computation():
    lengths = [12, 9, 7, 12, 5, 3]
    made = states(6, 12, 0)
    result = seen(step(made, lengths), config=Config(layer=0.5, window=5, directions=3)).result()
    where = result.everywhere
    for layer in range(LAYERS):
        base, other = (np.asarray(side, np.float64) for side in made[layer])
        texts = [(base[i, 1 : n - 1], other[i, 1 : n - 1]) for i, n in enumerate(lengths)]
        b, o = (np.concatenate([text[side] for text in texts]) for side in (0, 1))
        d, bn, on = (np.linalg.norm(x, axis=1) for x in (o - b, b, o))
        cosine = 1 - (b * o).sum(1) / (bn * on)
        exact = np.stack([d / bn, d, cosine, bn, on], 1)
        assert where.mean[layer] == pytest.approx(exact.mean(0), rel=1e-6)
        assert where.cka[layer] == pytest.approx(dense_cka(texts, 5), rel=1e-4)
        assert where.quantiles[layer, 1] == pytest.approx(
            np.quantile(exact, 0.5, axis=0, method="lower"), rel=result.sketch_error
        )
        assert where.quantiles[layer, -1] == pytest.approx(exact.max(0), rel=result.sketch_error)
        firsts = np.linalg.norm((other - base)[:, 0], axis=1) / np.linalg.norm(base[:, 0], axis=1)
        assert where.first[layer, 0] == pytest.approx(firsts.mean(), rel=1e-6)
        assert where.tokens == len(b)
        errors = [(exact[end - n : end] - exact.mean(0)).sum(0) for n, end in spans(texts)]
        half = (
            stats.t.ppf(0.975, len(texts) - 1) * np.std(errors, axis=0, ddof=1) * len(texts) ** 0.5 / len(b)
        )
        assert where.high[layer] - where.mean[layer] == pytest.approx(half, rel=1e-5)
        space = result.spaces[layer]
        assert space.cka_distance == pytest.approx(corpus_cka(b, o), rel=1e-4)
        leading = [np.linalg.eigh(np.cov(side.T))[1][:, ::-1][:, :3] for side in (b, o)]
        assert np.deg2rad(space.angles) == pytest.approx(
            np.sort(subspace_angles(*leading)), rel=1e-3, abs=1e-4
        )
        for side, spread in ((b, space.base_spread), (o, space.tuned_spread)):
            values = np.linalg.eigvalsh(np.cov(side.T))
            assert spread == pytest.approx(values.sum() ** 2 / np.square(values).sum(), rel=1e-4)
        if layer == result.layer:
            told = np.histogram(exact[:, 0], np.append(result.edges[:-1], np.inf))[0]
            assert result.histogram[:, 0].sum(0).tolist() == told.tolist()
            for q, key in enumerate(QUANTITIES):
                assert result.numbers[key].value == pytest.approx(exact[:, q].mean(), rel=1e-6)
                assert result.numbers[key].n == len(b)
            assert result.numbers["cka_distance"].value == pytest.approx(dense_cka(texts, 5), rel=1e-4)
    assert result.layer == 1


def test_classes_of_tokens_add_up():
    result = seen(step(states(8, 40, 1), [40, 30, 20, 10, 40, 30, 20, 2])).result()
    for i, (name, figures) in enumerate(result.slices.items()):
        counts = result.cell_counts[i]
        assert counts[:, 1:].sum() == figures["relative_norm"].n
        assert counts[:, 0].sum() == result.first[name]["relative_norm"].n == 4
        assert counts[_TEMPLATE, 0] == 4
        mean = (
            np.nansum(result.cells[i, result.layer, _TEXT, 1:, 0] * counts[_TEXT, 1:]) / counts[_TEXT].sum()
        )
        assert mean == pytest.approx(figures["relative_norm"].value, rel=1e-6)
        assert result.roles[name]["text"].value == figures["relative_norm"].value
        assert int(result.histogram[i, 0].sum()) == figures["relative_norm"].n
    assert np.isnan(result.cells[:, :, _TEMPLATE, 1:]).all(), "no data is never 0"
    texts = result.texts.data
    assert list(np.asarray(texts["tokens"])) == [38, 28, 18, 8, 38, 28, 18, 0]
    assert np.isnan(np.asarray(texts["relative_norm"])[-1])


def test_the_maps_are_means_over_tokens_of_a_position_and_of_a_role():
    made, lengths = states(6, 12, 3), [12, 9, 7, 12, 5, 3]
    role = torch.full((6, 12), _TEXT, dtype=torch.int8)
    role[:, 0], role[:, 3:5] = _TEMPLATE, _TEMPLATE
    one = replace(step(made, lengths), role=role)
    page = describe(seen(one).result())
    maps = {block.key: block.plot for block in page.blocks if isinstance(block, Figure)}
    keep = one.keep.numpy()
    for layer, (base, other) in enumerate(made):
        ratio = ((other - base).norm(dim=-1) / base.norm(dim=-1)).double().numpy()
        places, roles = maps["positions_relative"], maps["roles_relative"]
        assert isinstance(places, Heatmap)
        assert isinstance(roles, Heatmap)
        at = {name: places.values[layer][i] for i, name in enumerate(places.x)}
        assert at["0"] == pytest.approx(ratio[:, 0].mean())
        assert at["2-3"] == pytest.approx(ratio[:, 2:4][keep[:, 2:4]].mean())
        said = {name: roles.values[layer][i] for i, name in enumerate(roles.x)}
        assert said["template"] == pytest.approx(ratio[:, 3:5][keep[:, 3:5]].mean()), "first tokens are apart"


def test_bands_are_of_positions():
    positions = torch.tensor([0, 1, 2, 3, 4, 7, 8, 511, 512, 9999])
    assert [BANDS[i] for i in band(positions).tolist()] == [
        "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "256-511", "512+", "512+",
    ]  # fmt: skip


def test_a_first_token_is_in_no_headline_figure():
    plain, changed = states(6, 10, 2), states(6, 10, 2)
    for base, other in changed:
        base[:, 0] *= 1e4
        other[:, 0] *= -3e4
    one, other = (seen(step(made, [10] * 6)).result() for made in (plain, changed))
    for key, figure in one.numbers.items():
        assert other.numbers[key].value == figure.value, key
    assert [p.values for p in one.passages] == [p.values for p in other.passages]
    assert (one.everywhere.outlying == other.everywhere.outlying).all()
    assert other.everywhere.first_outlying.tolist() == [[6, 6]] * LAYERS
    assert (other.first["text"]["relative_norm"].value or 0) > 3.5
    angles = [result.spaces[-1].angles for result in (one, other)]
    assert angles[0] == angles[1]


def test_the_same_states_give_exactly_zero_and_no_passage():
    made = [(base, base.clone()) for base, _ in states(6, 10, 3)]
    result = seen(step(made, [10, 9, 8, 7, 6, 3])).result()
    for key in ("relative_norm", "difference_norm", "cosine_distance", "cka_distance"):
        figure = result.numbers[key]
        assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0), key
    assert result.numbers["tuned_norm"].value == result.numbers["base_norm"].value
    assert not result.everywhere.cka.any()
    assert all(space.cka_distance == 0 and not any(space.angles) for space in result.spaces)
    assert result.passages == ()
    assert "are the same" in describe(result).summary


def test_a_token_without_finite_figures_is_in_nothing_and_is_counted():
    clean, bad = states(4, 10, 4), states(4, 10, 4)
    bad[1][1][0, 4] = torch.inf
    bad[0][0][1, 5] = 0.0  # a state without a length
    cut = seen(step(bad, [10] * 4)).result()
    whole = seen(step(clean, [10] * 4)).result()
    assert cut.unscored == {"text": 1, "other": 1}
    assert whole.numbers["relative_norm"].n - cut.numbers["relative_norm"].n == 2
    layer = LAYERS - 1
    base, other = clean[layer]
    ratio = ((other - base).norm(dim=-1) / base.norm(dim=-1))[:, 1:9].double()
    ratio[0, 3] = ratio[1, 4] = torch.nan
    assert cut.numbers["relative_norm"].value == pytest.approx(float(ratio.nanmean()), rel=1e-6)
    assert np.isfinite(cut.everywhere.cka).all()
    said = [block.text for block in describe(cut).blocks if isinstance(block, Warning)]
    assert any("no finite figures" in text for text in said)


def test_texts_too_short_for_anything_give_none():
    result = seen(step(states(2, 3, 5), [2, 1])).result()
    assert all(figure.value is None for figure in result.numbers.values())
    assert result.first["text"]["relative_norm"].n == 1
    assert result.passages == ()
    assert seen(step(states(2, 3, 5), [3, 1])).result().spaces == (), "one token has no spread"
    few = seen(step(states(2, 4, 5), [4, 4])).result().numbers
    assert few["relative_norm"].n == 4
    assert few["cka_distance"].value is None, "two tokens have no similarity to compare"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-4, 0.5), st.integers(4, 9))
def test_cka_keeps_the_digits_of_a_small_change(seed: int, size: float, window: int):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(3, 12, D, generator=generator, dtype=torch.float64)
    other = base + size * torch.randn(3, 12, D, generator=generator, dtype=torch.float64)
    known = torch.ones(3, 12, dtype=torch.bool)
    found = float(cka_distance(gram_sums(base.float(), other.float(), known, window).sum(0).numpy()))
    exact = dense_cka([(b[1:].numpy(), o[1:].numpy()) for b, o in zip(base, other, strict=True)], window)
    assert found == pytest.approx(exact, rel=2e-3, abs=1e-9)


def test_cka_does_not_see_a_shift_a_scale_or_a_rotation_but_sees_another_order():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 30, D, generator=generator)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    known = torch.ones(4, 30, dtype=torch.bool)
    same, shuffled = 3.0 * base @ turn + 5.0, base[:, torch.randperm(30, generator=generator)]
    near, far = (float(cka_distance(gram_sums(base, x, known, 64).sum(0).numpy())) for x in (same, shuffled))
    assert near < 1e-6
    assert far > 0.5
    assert compared(known, 64).tolist() == [29] * 4


def test_opposed_similarities_are_as_far_apart_as_can_be():
    """Sums of (HSIC(K, K), HSIC(K, E), HSIC(E, E)): the tuned model's are K + E."""
    assert cka_distance(np.array([[1.0, -1.5, 2.5], [1.0, -1.0, 2.0], [1.0, 0.0, 0.0]])).tolist() == [
        1.0,
        1.0,
        0.0,
    ]
    assert np.isnan(cka_distance(np.array([[0.0, 0.0, 1.0], [1.0, -1.0, 1.0]]))).all(), "one side all alike"


def test_the_interval_of_cka_is_wider_than_its_percentiles_for_few_texts():
    grams = np.random.default_rng(0).random((6, 2, 3)) + np.array([5.0, -1.0, 2.0])
    counts = np.array([9, 9, 9, 9, 9, 0])
    bounds, draws = alignments(grams, counts, np.arange(6, dtype=np.uint64), 0)
    assert bounds.value == pytest.approx(cka_distance(grams[:5].sum(0))), (
        "a text without tokens is in nothing"
    )
    for layer in range(2):
        low, high = np.nanquantile(draws[:, layer], [0.025, 0.975])
        assert bounds.low[layer] < low < bounds.value[layer] < high < bounds.high[layer]
    alone, _ = alignments(grams[:1], counts[:1], np.zeros(1, np.uint64), 0)
    assert np.isfinite(alone.value).all()
    assert np.isnan(alone.low).all()


def test_the_texts_that_moved_most_lead_and_the_largest_token_is_where_it_was_planted():
    made = states(8, 10, 6, moved=0.01)
    last = made[-1]
    last[1][2] += 0.5  # a whole text of the first slice
    last[1][4, 7] += 20.0  # one token of it
    steps = [step([(b[i : i + 4], o[i : i + 4]) for b, o in made], [10] * 4, first=i) for i in (0, 4)]
    passages = seen(*steps, config=Config(passages=2)).result().passages
    ranked = [(p.slice, p.by, p.row) for p in passages]
    assert ranked[:4] == [
        ("text", "mean", 4),
        ("text", "mean", 2),
        ("text", "token", 4),
        ("text", "token", 2),
    ]
    assert len(ranked) == 8
    values = passages[2].values
    assert values[0] is None, "the first token is apart"
    assert values[9] is None, "the last predicts nothing"
    assert max(range(10), key=lambda i: values[i] or 0.0) == 7
    assert passages[2].value == pytest.approx(values[7])
    shown = [block for block in describe(seen(*steps).result()).blocks if isinstance(block, Passage)]
    assert len({p.title.split(":")[0] for p in shown}) == len(shown), "one that leads twice is shown once"


def test_a_long_text_is_shown_around_its_largest_token():
    made = states(1, 400, 7)
    made[-1][1][0, 300] += 50.0
    passage = seen(step(made, [400])).result().passages[0]
    assert len(passage.tokens) == len(passage.values) == 160
    assert passage.tokens[int(np.nanargmax([v or 0.0 for v in passage.values]))] == "t300"
    made[-1][1][0, 390] += 90.0
    passage = seen(step(made, [400])).result().passages[0]
    assert passage.tokens == tuple(f"t{i}" for i in range(240, 400)), "as much of it, also at its end"


def test_a_mean_over_few_tokens_leads_no_ranking_and_equals_go_by_row():
    made = [(base[:1].repeat(4, 1, 1), other[:1].repeat(4, 1, 1)) for base, other in states(1, 9, 3)]
    made[-1][1][0] += 9.0  # the one that moved most has four tokens that count
    one = replace(step(made, [6, 9, 9, 9]), slice=torch.zeros(4, dtype=torch.long))
    for order in (slice(None), [3, 2, 1, 0]):
        rows = torch.arange(4)[order].tolist()
        turned = replace(
            one, row=one.row[rows], key=one.key[rows], keep=one.keep[rows], role=one.role[rows],
            hidden=lambda layer, rows=rows: (made[layer][0][rows], made[layer][1][rows]),
        )  # fmt: skip
        passages = seen(turned, config=Config(passages=2)).result().passages
        assert [(p.by, p.row) for p in passages] == [("mean", 1), ("mean", 2), ("token", 0), ("token", 1)]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_shards_merged_are_the_whole_to_the_bit_and_states_are_restored(seed: int, cut: int):
    """The same batches: so sums are added in the same order of texts, counts exactly, whatever the cut."""
    made = [states(3, 9, seed + i) for i in range(4)]
    for one in made:
        one[0][1][0, 3] = torch.nan
    steps = [step(one, [9, 7, 2 + i], first=3 * i) for i, one in enumerate(made)]
    whole, parts = seen(*steps), (seen(*steps[:cut]), seen(*steps[cut:]))
    total = observer(Config(), subject())
    for part in parts:
        again = observer(Config(), subject())
        again.restore({name: tensor.clone() for name, tensor in part.state().items()})
        total.merge(again)
    one, other = whole.state(), total.state()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        exact = not tensor.is_floating_point() or name.startswith(("table", "passage"))
        near = 0.0 if exact else 1e-6
        if "shift" not in name and not (name.startswith("space") and not exact):
            torch.testing.assert_close(tensor, other[name], equal_nan=True, rtol=near, atol=near)
    a, b = whole.result(), total.result()
    assert a.unscored == b.unscored == {"text": 4, "other": 0}
    assert {k: e.value for k, e in a.numbers.items()} == {k: e.value for k, e in b.numbers.items()}
    assert np.array_equal(a.everywhere.quantiles, b.everywhere.quantiles, equal_nan=True)
    for x, y in zip(a.spaces, b.spaces, strict=True):
        assert x.cka_distance == pytest.approx(y.cka_distance, rel=1e-4)
        assert x.angles == pytest.approx(y.angles, rel=1e-3, abs=1e-3)


def test_the_spaces_of_the_two_models():
    """A direction that only the tuned model varies in is at a right angle to all that the base has."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(4, 200, D)
    base[..., :2] = torch.randn(4, 200, 2, generator=generator)
    other = base.clone()
    other[..., 1] = 0.0
    other[..., 5] = torch.randn(4, 200, generator=generator)
    base, other = base + 1.0, other + 1.0  # no state is without a length
    result = seen(step([(base, other)] * LAYERS, [200] * 4), config=Config(directions=2)).result()
    assert [space.layer for space in result.spaces] == [0, 1, 2]
    assert result.spaces[0].angles == pytest.approx((0.0, 90.0), abs=5.0)
    assert result.spaces[0].base_spread == pytest.approx(2.0, rel=0.02)
    assert 0.2 < (result.spaces[0].cka_distance or 0) < 0.8
    assert seen(step(states(2, 9, 0), [9, 9]), config=Config(directions=0)).result().spaces == ()


def test_covariances_are_kept_for_as_many_layers_as_fit():
    assert layers_kept(28, 64, 27, 128) == tuple(range(28))
    assert layers_kept(28, 2048, 20, 128) == (20,)
    assert layers_kept(28, 4096, 20, 128) == ()
    few = layers_kept(28, 1024, 20, 128)
    assert len(few) == 5
    assert {0, 20, 27} <= set(few)
    assert 17 in layers_kept(28, 1024, 17, 128), "also between the evenly spread"


# Norms out of line.


def test_massive_activations_are_counted_by_layer():
    made = states(6, 20, 8)
    made[1][0][2, 5] *= 100
    made[1][1][2, 5] *= 100
    made[1][1][3, 6] *= 50
    result = seen(step(made, [20] * 6)).result()
    assert result.everywhere.outlying.tolist() == [[0, 0], [1, 2], [0, 0]]
    table = next(b for b in describe(result).blocks if isinstance(b, Table) and b.key == "outliers")
    assert table.rows[1][table.columns.index("tuned_share")] == 2 / result.everywhere.tokens


# Slices beside one another.


def drawn(seed: int, moved: float, narrow: float = 1.0) -> Result:
    """16 texts, the same ones for every seed; `narrow` times as far moved on the second slice."""
    noise = torch.randn(LAYERS, 16, 10, D, generator=torch.Generator().manual_seed(seed))
    size = moved * torch.tensor([1.0, narrow]).repeat(8)[:, None, None]
    made = [(base, base + size * noise[i]) for i, (base, _) in enumerate(states(16, 10, 0))]
    return seen(step(made, [10] * 16)).result()


def test_a_narrow_change_is_apart_however_much_the_nulls_were_trained():
    """Its size is in the middle of the nulls'; where it went is not."""
    nulls = [drawn(i + 1, moved) for i, moved in enumerate((0.05, 0.1, 0.2, 0.4, 0.3))]
    pair = drawn(7, 0.1, narrow=1.6)
    sizes = [null.slices["other"]["relative_norm"].value or 0.0 for null in nulls]
    assert min(sizes) < (pair.slices["other"]["relative_norm"].value or 0.0) < max(sizes)
    found = beside(pair, nulls)
    assert standing_out(found) == ("other",)
    text, other = (pair.slices[name]["relative_norm"].value or 0.0 for name in ("text", "other"))
    assert found["other"].times == pytest.approx(other / text)
    low, high = found["other"].low or 0.0, found["other"].high or 0.0
    assert low < found["other"].times < high
    # Over texts, two slices of other texts each: the errors of both.
    drawn_twice = [pair.slices[name]["relative_norm"].replicates for name in ("text", "other")]
    errors = [float(np.nanstd(np.log(one))) for one in drawn_twice if one is not None]
    assert np.log(high / low) == pytest.approx(2 * 1.96 * float(np.linalg.norm(errors)), rel=0.15)
    assert standing_out(beside(nulls[1], [*nulls[:1], *nulls[2:]])) == ()
    page = describe(pair, nulls)
    assert "more of it is on `other` (1." in page.summary
    assert "most on `other`" in page.summary
    table = next(b for b in page.blocks if isinstance(b, Table) and b.key == "beside")
    assert [row[table.columns.index("apart")] for row in table.rows] == ["no", "yes"]


def test_tables_hold_each_layers_own_figures_beside_those_of_the_nulls():
    pair, nulls = drawn(7, 0.1), [drawn(1, 0.05), drawn(2, 0.2)]
    tables = {b.key: b for b in describe(pair, nulls).blocks if isinstance(b, Table)}

    def column(table: str, name: str) -> list[Any]:
        return [row[tables[table].columns.index(name)] for row in tables[table].rows]

    for at, space in enumerate(pair.spaces):
        theirs = [null.spaces[at] for null in nulls]
        assert column("spaces", "largest_angle")[at] == max(space.angles)
        assert column("spaces", "mean_angle")[at] == pytest.approx(np.mean(space.angles))
        assert column("spaces", "nulls_low")[at] == min(one.cka_distance or 0.0 for one in theirs)
        assert column("spaces", "nulls_high_angle")[at] == pytest.approx(
            max(np.mean(one.angles) for one in theirs)
        )
        assert column("layers", "nulls_low")[at] == nulls[0].everywhere.mean[at, 0]
        assert column("layers", "nulls_high")[at] == nulls[1].everywhere.mean[at, 0]
        assert column("layers", "cka_distance")[at] == pair.everywhere.cka[at]
    for i, name in enumerate(pair.slices):
        first, rest = pair.first[name]["base_norm"].value or 0.0, pair.slices[name]["base_norm"].value or 1.0
        assert column("first", "times_the_others")[i] == pytest.approx(first / rest)
    said = [block.text for block in describe(pair).blocks if isinstance(block, Warning)]
    assert any("Fewer than 20 texts on text, other" in text for text in said)


def test_a_slice_is_beside_the_geometric_mean_of_all_others():
    figures = {"a": 8.0, "b": 2.0, "c": 4.0}
    slices = {
        name: {"relative_norm": Estimate(value, "share", 99, 30, value, value, np.full(50, value))}
        for name, value in figures.items()
    }
    result: Any = SimpleNamespace(slices=slices)
    found = beside(result, [])
    for name, times in (("a", 8 / 8**0.5), ("b", 2 / 32**0.5), ("c", 1.0)):
        assert (found[name].low, found[name].times, found[name].high) == pytest.approx((times,) * 3)
    told: Any = {
        str(ratio): SimpleNamespace(apart="yes", verdict=SimpleNamespace(ratio=ratio)) for ratio in (2.0, 3.0)
    }
    assert standing_out(told) == ("3.0", "2.0"), "the furthest first"


def test_without_nulls_or_with_one_slice_nothing_is_apart():
    pair = drawn(7, 0.1, narrow=1.6)
    alone = beside(pair, [])
    assert standing_out(alone) == ()
    table = next(b for b in describe(pair).blocks if isinstance(b, Table) and b.key == "beside")
    assert {row[table.columns.index("apart")] for row in table.rows} == {None}
    assert beside(drawn(7, 0.0), []) == {}, "what did not move has no shape"


# On models.


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path, list[dict[str, Any]]]:
    tmp = tmp_path_factory.mktemp("models")
    base = save_base(tmp)
    tuned, data = save_lora(tmp, base, scale=0.1), rows(24)
    nulls = {f"n{i}": str(save_lora(tmp, base, seed=9 + i, name=f"n{i}", scale=0.01)) for i in range(3)}
    pair = ft.load_pair(str(base), str(tuned), nulls=nulls)
    return ft.diff(pair, data, methods=["activation_analysis"], out=tmp / "out"), base, tuned, data


def test_parity_with_transformers_own_hidden_states(audited: tuple[Any, Path, Path, list[dict[str, Any]]]):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found, base, tuned, data = audited
    result: Result = found.results["activation_analysis"]["pair"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), str(tuned)
    )
    corpus = build_corpus(read_rows(data), ft.load_pair(str(base), None).tokenizer)
    exact: dict[str, list[Tensor]] = {key: [] for key in QUANTITIES}
    for tokens in corpus.tokens:
        ids = torch.tensor(tokens.ids[None].astype("int64"))
        with torch.no_grad():
            # The first block's output; transformers' last hidden state is after the final norm.
            b, o = (
                m(input_ids=ids, output_hidden_states=True).hidden_states[1][0, 1:-1]
                for m in (model, adapted)
            )
        moved = (o - b).norm(dim=-1)
        values = (
            moved / b.norm(dim=-1),
            moved,
            1 - torch.cosine_similarity(b, o, dim=-1),
            b.norm(dim=-1),
            o.norm(dim=-1),
        )
        for key, value in zip(QUANTITIES, values, strict=True):
            exact[key].append(value)
    for q, key in enumerate(QUANTITIES):
        assert result.everywhere.mean[0, q] == pytest.approx(float(torch.cat(exact[key]).mean()), rel=1e-5), (
            key
        )


def test_a_pair_that_moved_more_than_its_nulls_is_beyond_them(
    audited: tuple[Any, Path, Path, list[dict[str, Any]]],
):
    found = audited[0]
    assert found.change == "beyond-nulls"
    assert found["activation_analysis"].numbers["relative_norm"].floor < 1e-5
    norms = (found["activation_analysis"].numbers[key] for key in ("base_norm", "tuned_norm"))
    assert all(norm.floor is None for norm in norms), "a norm is no difference: it cannot be below the floor"
    results = found.results["activation_analysis"]
    nulls = [result for label, result in results.items() if label.startswith("null:")]
    page = describe(results["pair"], nulls)
    table = next(b for b in page.blocks if isinstance(b, Table) and b.key == "layers")
    own, theirs = (
        np.array([row[table.columns.index(name)] for row in table.rows], np.float64)
        for name in ("relative_norm", "nulls_high")
    )
    assert (own > theirs).all()
    assert (theirs > 0).all()


@pytest.mark.parametrize(
    "wrong", [{"layer": 1.5}, {"window": 3}, {"passages": -1}, {"directions": -1}, {"memory": -1}]
)
def test_options_are_checked(wrong: dict[str, Any]):
    with pytest.raises(BadInput, match="activation_analysis"):
        Config(**wrong)
