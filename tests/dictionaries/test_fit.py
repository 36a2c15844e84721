"""How well a dictionary gives back rows, and how sure that is: over texts, as rows of one text are alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.fit import Share, fit

D, LATENTS = 6, 9


def some(models: int = 2) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    return Dictionary(
        torch.randn(models, D, LATENTS, generator=g), torch.zeros(LATENTS), torch.randn(models, LATENTS, D, generator=g) / 9,
        torch.zeros(models, D), torch.zeros(models, D), torch.ones(models), torch.zeros(LATENTS, dtype=torch.int8), 0.1,
        "batch_topk", "crosscoder" if models == 2 else "none",
    )  # fmt: skip


def texts_of(size: int, each: int, models: int = 2) -> tuple[Tensor, np.ndarray]:
    """Rows of `size` texts, `each` a text; those of one text are nearly the same."""
    g = torch.Generator().manual_seed(1)
    own = torch.randn(size, 1, models, D, generator=g)
    rows = own + 0.05 * torch.randn(size, each, models, D, generator=g)
    return rows.flatten(0, 1), np.repeat(np.arange(size, dtype=np.uint64) + 7, each)


def width(share: Share) -> float:
    assert share.low is not None
    assert share.high is not None
    return share.high - share.low


def test_the_interval_is_that_of_sums_by_text():
    made, (rows, texts) = some(), texts_of(12, 5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    found = fit(made, rows[order], texts[order.numpy()])
    error = (made.reconstruct(rows) - rows).double().square().sum(2).view(12, 5, 2).sum(1)
    size = (rows - rows.mean(0)).double().square().sum(2).view(12, 5, 2).sum(1)
    for model, share in enumerate(found.unexplained):
        e, s = error[:, model].numpy(), size[:, model].numpy()
        value = e.sum() / s.sum()
        residual = e - value * s
        half = stats.t.ppf(0.975, 11) * np.sqrt(12 * residual.var(ddof=1)) / s.sum()
        assert share.value == pytest.approx(value, rel=1e-5)
        assert (share.low, share.high) == pytest.approx((max(0.0, value - half), value + half), rel=1e-4)
        assert (share.n, share.texts) == (60, 12)
    assert found.difference is not None
    assert found.difference.texts == 12


def test_a_row_that_is_there_twice_in_its_text_says_nothing_new():
    made, (rows, texts) = some(1), texts_of(12, 5, 1)
    once, twice = fit(made, rows, texts), fit(made, rows.repeat(2, 1, 1), np.tile(texts, 2))
    alone = fit(made, rows.repeat(2, 1, 1))
    assert width(twice.unexplained[0]) == pytest.approx(width(once.unexplained[0]), rel=1e-6)
    assert width(alone.unexplained[0]) < 0.6 * width(once.unexplained[0])
    assert alone.unexplained[0].texts is None


def test_of_one_text_there_is_a_value_and_no_interval():
    rows, _ = texts_of(1, 30)
    share = fit(some(), rows, np.full(30, 3, np.uint64)).unexplained[0]
    assert share.value is not None
    assert (share.low, share.high, share.texts) == (None, None, 1)
    with pytest.raises(BadInput, match="30 rows and texts for 4"):
        fit(some(), rows, np.zeros(4, np.uint64))


def test_rows_looked_at_in_portions_are_those_of_all(monkeypatch: pytest.MonkeyPatch):
    made, (rows, texts) = some(), texts_of(12, 5)
    whole = fit(made, rows, texts)
    monkeypatch.setattr("finetrace.dictionaries.fit._CHUNK", 7)
    parts = fit(made, rows, texts)
    codes = made.codes(rows)
    assert whole.l0 == parts.l0 == float((codes > 0).sum(1).double().mean())
    assert whole.silent == parts.silent == float((codes <= 0).all(0).double().mean())
    assert parts.unexplained[0].value == pytest.approx(whole.unexplained[0].value)
    assert fit(made, rows[:10], texts[:10]).unexplained[0].low == 0.0, "of two texts hardly anything is known"
