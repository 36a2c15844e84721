"""What --dry-run says of methods that read the texts again: readings, and what they train on each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finetrace.api.cost import Sizes, _again
from finetrace.core.card import method
from finetrace.core.dictionaries import course

SIZES = Sizes(asked=0, padded=1200, tokens=1000, parameters=5000)


@pytest.mark.parametrize(("name", "models"), [("sae_difference", 1), ("crosscoder", 2)])
def test_training_counts_as_the_tokens_whose_forwards_cost_as_much(name: str, models: int):
    card = method(name)
    config = card.config(held=0.4)
    chosen: Any = SimpleNamespace(card=card, config=config)
    pair: Any = SimpleNamespace(d_model=32)
    products = course(config, 600, 32).products(models, 32)
    line, tokens = _again(chosen, pair, 3, SIZES)
    assert tokens == 2 * 1200 * 3 + round(products * 3 / 5000)
    assert line == (
        f"{name}: reads the texts again on 3 contrasts, at least 7,200 tokens forwards, and trains on each, which costs "
        f"about as much as {products * 3 / 5000:,.0f} tokens"
    )


def test_what_trains_nothing_only_reads():
    chosen: Any = SimpleNamespace(card=SimpleNamespace(name="some", work=None), config=None)
    pair: Any = SimpleNamespace(d_model=32)
    line, tokens = _again(chosen, pair, 2, SIZES)
    assert (line, tokens) == (
        "some: reads the texts again on 2 contrasts, at least 4,800 tokens forwards",
        4800,
    )
