"""What a result's key holds: everything that moves its numbers."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import save_base, save_lora
from tests.worlds import rows

import finetrace as ft


def test_a_null_with_fewer_tokens_does_not_reuse_the_pairs_result(tmp_path: Path):
    """Only shared tokens are compared, so such a null changes the pair's own distributions."""
    base = save_base(tmp_path)
    tuned = save_lora(tmp_path, base)
    smaller = save_base(tmp_path, name="smaller", vocab=60, seed=3)
    plain = ft.diff(ft.load_pair(str(base), str(tuned)), rows(9), out=tmp_path / "out")
    beside = ft.load_pair(str(base), str(tuned), nulls={"smaller": str(smaller)})
    assert beside.vocab_size == 60
    cut = ft.diff(beside, rows(9), out=tmp_path / "out")
    fresh = ft.diff(beside, rows(9), out=tmp_path / "fresh")
    value = cut["kl"].numbers["kl_mean"].value
    assert value == fresh["kl"].numbers["kl_mean"].value
    assert value != plain["kl"].numbers["kl_mean"].value


def test_a_null_with_the_same_tokens_reuses_it(tmp_path: Path):
    base = save_base(tmp_path)
    tuned, null = save_lora(tmp_path, base), save_lora(tmp_path, base, seed=5, name="null")
    runs = tmp_path / "out" / "runs" / "base" / "lora"
    ft.diff(ft.load_pair(str(base), str(tuned)), rows(9), out=tmp_path / "out")
    before = sorted(runs.rglob("result.json"))
    ft.diff(ft.load_pair(str(base), str(tuned), nulls={"null": str(null)}), rows(9), out=tmp_path / "out")
    assert sorted(runs.rglob("result.json")) == before
