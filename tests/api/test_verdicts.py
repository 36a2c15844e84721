"""A pair's figures as every reader gets them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from finetrace.api.verdicts import readings
from finetrace.core.estimate import Estimate
from finetrace.engine import PAIR


def test_what_a_page_withholds_has_no_value_in_any_reading():
    one = Estimate(1.0, "position", 5, 5, 0.5, 1.5)
    result = SimpleNamespace(numbers={"depth": one, "kl": one}, slices={"part": {"depth": one}})
    hiding = SimpleNamespace(withheld_on=lambda pair, nulls, where: {"depth"} if nulls else set())
    card: Any = SimpleNamespace(part=lambda name: hiding, levels=())
    results = {PAIR: result, "null:one": result}
    hidden = readings(card, results, None, "null")
    assert hidden["depth"].estimate == Estimate(None, "position", 0, 0)
    assert hidden["kl"].estimate == one
    assert readings(card, results, "part", "null")["depth"].value is None
    assert readings(card, {PAIR: result}, None, "null")["depth"].value == 1.0
    silent: Any = SimpleNamespace(part=lambda name: SimpleNamespace(), levels=())
    assert readings(silent, results, None, "null")["depth"].value == 1.0
