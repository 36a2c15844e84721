"""Feature rates of two models: nothing on identical ones, no more false findings than promised, planted ones found."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.dictionaries import figures
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.rates import Compared, Rates
from finetrace.dictionaries.reading import Tokens
from finetrace.stats import wilson
from finetrace.stats.rates import tango

D, FEATURES = 6, 12


def made(**changes: Any) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    fixed: dict[str, Any] = {
        "encoder": torch.randn(1, D, FEATURES, generator=g),
        "encoder_bias": torch.cat([torch.zeros(FEATURES - 1), torch.tensor([-99.0])]),
        "decoder": torch.nn.functional.normalize(torch.randn(1, FEATURES, D, generator=g), dim=2),
        "decoder_bias": torch.zeros(1, D),
        "mean": torch.zeros(1, D),
        "scale": torch.ones(1),
        "owner": torch.zeros(FEATURES, dtype=torch.int8),
        "threshold": 1.5,
        "kind": "batch_topk",
    }
    return Dictionary(**(fixed | changes))


def texts(count: int, seed: int = 0, noise: float = 0.5) -> Tokens:
    """Texts of 1 to 9 tokens whose features go together; the second model's states are the first's and some noise."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    length = torch.from_numpy(rng.integers(1, 10, count))
    text = torch.repeat_interleave(torch.arange(count), length)
    base = torch.randn(count, D, generator=g)[text] + 0.5 * torch.randn(len(text), D, generator=g)
    tuned = base + noise * torch.randn(len(text), D, generator=g)
    keys = rng.integers(0, 2**64, count, dtype=np.uint64)
    return Tokens(base, tuned, text, text * 0, keys, np.zeros(count, np.int64), np.arange(count))


def compare(dictionary: Dictionary, *some: Tokens) -> Compared:
    rates = Rates(dictionary)
    for one in some:
        rates.see(one)
    return rates.compared()


def test_rates_and_codes_are_plain_counts_over_tokens():
    some, rows = made(), texts(40)
    found = compare(some, rows)
    base, tuned = (some.codes(side[:, None]).double().numpy() for side in (rows.base, rows.tuned))
    n = len(rows)
    live = found.fires
    assert list(np.flatnonzero(~live)) == [FEATURES - 1]
    assert (found.tokens, found.texts) == (n, 40)
    np.testing.assert_allclose(found.base[live], (base > 0).mean(0)[live])
    np.testing.assert_allclose(found.tuned[live], (tuned > 0).mean(0)[live])
    np.testing.assert_allclose(found.difference, found.tuned - found.base)
    np.testing.assert_allclose(found.code_difference[live], (tuned - base).mean(0)[live], atol=1e-12)
    np.testing.assert_array_equal(found.only_base, ((base > 0) & ~(tuned > 0)).sum(0))
    np.testing.assert_array_equal(found.only_tuned, ((tuned > 0) & ~(base > 0)).sum(0))
    # The paired interval, by the definition of its effective size.
    j = int(np.flatnonzero(live)[0])
    change = (tuned[:, j] > 0).astype(float) - (base[:, j] > 0)
    residual = change - change.mean()
    together = np.square(np.bincount(rows.text.numpy(), residual)).sum() * 40 / 39
    design = max(1.0, together / np.square(residual).sum())
    size = float(figures.effective_size(n, np.array(design), 40))
    shrink = size / n
    exact = tango(found.only_tuned[j] * shrink, found.only_base[j] * shrink, size)
    assert exact is not None
    assert (found.low[j], found.high[j]) == pytest.approx((exact.low, exact.high), abs=1e-9)
    strength = tuned[:, j] - base[:, j]
    residual = strength - strength.mean()
    error = np.sqrt(np.square(np.bincount(rows.text.numpy(), residual)).sum() * 40 / 39) / n
    assert found.code_high[j] - found.code_difference[j] == pytest.approx(stats.t.ppf(0.975, 39) * error)
    for name in ("ratio", "code"):
        value = found.ratio if name == "ratio" else found.code_difference
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        known = np.isfinite(low)
        assert known.sum() > 5
        assert (low[known] <= value[known]).all()
        assert (value[known] <= high[known]).all()


def test_intervals_of_shares_and_ratios_are_those_over_texts():
    some, rows = made(), texts(40)
    found, n, text = compare(some, rows), len(rows), rows.text.numpy()
    base, tuned = (some.codes(side[:, None]).numpy() > 0 for side in (rows.base, rows.tuned))
    j = int(np.flatnonzero(np.isfinite(found.ratio_low))[0])
    for fires, low, high in (
        (base, found.base_low, found.base_high),
        (tuned, found.tuned_low, found.tuned_high),
    ):
        rate, residual = fires[:, j].mean(), fires[:, j] - fires[:, j].mean()
        design = max(1.0, np.square(np.bincount(text, residual)).sum() * 40 / 39 / np.square(residual).sum())
        size = figures.effective_size(n, np.array([design]), 40)
        assert (low[j], high[j]) == pytest.approx(
            [float(end[0]) for end in figures.wilson(np.array([rate]), size)]
        )
    a, b = (np.bincount(text, fires[:, j]) for fires in (base, tuned))
    # Of the logarithm: a text's share of one side's firings less its share of the other's.
    error = np.sqrt(np.square(b / b.sum() - a / a.sum()).sum() * 40 / 39)
    factor = np.exp(stats.t.ppf(0.975, 39) * error)
    value = b.sum() / a.sum()
    assert (found.ratio_low[j], found.ratio[j], found.ratio_high[j]) == pytest.approx(
        (value / factor, value, value * factor)
    )
    change = np.bincount(
        text, (some.codes(rows.tuned[:, None]) - some.codes(rows.base[:, None])).numpy()[:, j]
    )
    for p, terms in ((found.p, b - a), (found.code_p, change)):
        one = figures.two_sided(np.array([terms.sum()]), np.array([np.square(terms).sum()]))
        assert p[j] == pytest.approx(float(one[0]), rel=1e-4)


def test_nothing_is_found_between_identical_models():
    rows = texts(60, noise=0.0)
    found = compare(made(), rows)
    live = found.fires
    assert (found.difference[live] == 0).all()
    assert (found.code_difference[live] == 0).all()
    assert (found.p[live] == 1).all()
    assert (found.q[live] == 1).all()
    assert (found.code_q[live] == 1).all()
    assert not found.significant(0.99).any()
    # "No text differed" is not "no text can differ": the interval is not a point.
    assert (found.low[live] < 0).all()
    assert (found.high[live] > 0).all()
    assert np.isnan(found.ratio_low).all()
    assert np.isnan(found.code_low).all()
    # Nor are a text's tokens so many trials: they fire together, and would change together.
    alone = figures.effective_size(len(rows), np.ones(FEATURES), 60)
    low, _ = figures.tango(np.zeros(FEATURES), np.zeros(FEATURES), alone)
    assert (found.low[live] < 1.3 * low[live]).any()


def test_a_feature_that_never_fires_says_nothing():
    found = compare(made(), texts(30))
    dead = FEATURES - 1
    for field in fields(found):
        array = getattr(found, field.name)
        if isinstance(array, np.ndarray) and array.dtype == np.float64:
            assert np.isnan(array[dead]), field.name
    assert not found.significant(1.0)[dead]
    nothing = Rates(made()).compared()
    assert (nothing.tokens, nothing.texts) == (0, 0)
    assert np.isnan(nothing.base).all()
    assert np.isnan(nothing.q).all()


def noisy(rng: np.random.Generator, texts_: int, features: int, raised: int = 0) -> Compared:
    """Two models whose features fire alike often, in the same texts more than in others; the first `raised` more in the
    second."""
    rates = Rates(made(**_wide(features)))
    length = rng.integers(5, 60, texts_)
    level = rng.gamma(0.3, 1.0, (texts_, features)) * 0.05
    odds = np.ones(features)
    odds[:raised] = 6.0
    # In a text one model may fire several times where the other does not: tokens are no independent trials.
    own = [0.5 * rng.gamma(0.5, 2.0, level.shape) for _ in range(2)]
    shares = (0.5, own[0], own[1] * odds)
    both, one, other = (rng.poisson(length[:, None] * level * share) for share in shares)
    a, b = both + one, both + other
    u = both + one + other
    limit = length[:, None]
    counts = (np.minimum(a, limit), np.minimum(b, limit), np.minimum(u, limit))
    keys = rng.integers(0, 2**64, texts_, dtype=np.uint64)
    rates.add(keys, length, counts, (counts[0] * 1.0, counts[1] * 1.0))
    return rates.compared()


def _wide(features: int) -> dict[str, Any]:
    return {
        "encoder": torch.zeros(1, D, features),
        "encoder_bias": torch.zeros(features),
        "decoder": torch.zeros(1, features, D),
        "owner": torch.zeros(features, dtype=torch.int8),
    }


def test_noise_gives_no_more_findings_than_promised():
    rng = np.random.default_rng(1)
    runs = [noisy(rng, 60, 60) for _ in range(100)]
    any_found = sum(bool(run.significant(0.1).any()) for run in runs)
    chance = wilson(any_found, len(runs))
    assert chance is not None
    # With nothing to be found, every finding is false: a share of 0.1 at most of the runs may have one.
    assert chance.low < 0.1
    covered = np.mean([(run.low <= 0) & (run.high >= 0) for run in runs])
    assert 0.93 < covered <= 1.0


def test_what_was_raised_is_found_and_little_else():
    rng = np.random.default_rng(2)
    power, false = [], []
    for _ in range(15):
        hits = noisy(rng, 300, 80, raised=20).significant(0.1)
        power.append(hits[:20].mean())
        false.append(hits[20:].sum() / max(1, hits.sum()))
    assert np.mean(power) > 0.9
    assert np.mean(false) < 0.1


def test_parts_merged_are_the_whole_and_groups_add_up():
    some, first, second = made(), texts(25, seed=1), texts(30, seed=2)
    whole = compare(some, first, second)
    merged, one, other = Rates(some), Rates(some), Rates(some)
    one.see(first)
    other.see(second)
    merged.merge(other)
    merged.merge(one)
    found = merged.compared()
    for field in fields(whole):
        np.testing.assert_allclose(getattr(found, field.name), getattr(whole, field.name), rtol=1e-9)
    assert merged.tokens_by_group.sum() == len(first) + len(second)
    np.testing.assert_allclose(merged.by_group[0].sum(0)[:-1] / merged.tokens, whole.base[:-1])
    table = found.columns()
    assert len(table) == FEATURES
    assert list(table.data)[:2] == ["feature", "base"]


def test_a_crosscoder_is_refused():
    two = {name: getattr(made(), name).repeat(2, *[1] * n) for name, n in (("encoder", 2), ("decoder", 2))}
    two |= {name: getattr(made(), name).repeat(2, 1) for name in ("decoder_bias", "mean")}
    with pytest.raises(BadInput, match="of one model"):
        Rates(made(**two, scale=torch.ones(2)))


@given(st.integers(1, 500), st.data())
@settings(max_examples=40, deadline=None)
def test_intervals_for_many_are_those_for_one(n: int, data: st.DataObject):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = figures.tango(np.array([float(b)]), np.array([float(c)]), np.array([float(n)]))
    exact, rate = tango(b, c, n), wilson(b, n)
    assert exact is not None
    assert rate is not None
    assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), abs=1e-7)
    ends = figures.wilson(np.array([b / n]), np.array([float(n)]))
    assert (ends[0][0], ends[1][0]) == pytest.approx((rate.low, rate.high), abs=1e-12)
