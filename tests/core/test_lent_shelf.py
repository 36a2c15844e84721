"""A shelf behind several audits: what one has made, another finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from finetrace.core.shelf import Address, Shelf

ADDRESS = Address("base", "tuned", "default", "kl", "k1")


@dataclass(frozen=True)
class Result:
    value: float


def test_what_one_saves_another_holds_in_its_own_folder(tmp_path: Path):
    first, second = (Shelf(tmp_path / name, tmp_path / "lent") for name in ("first", "second"))
    assert not second.holds(ADDRESS)
    first.save(ADDRESS, Result(0.5), {"seconds": 1.0})
    assert second.holds(ADDRESS)
    assert second.load(ADDRESS, Result) == Result(0.5)
    assert [entry.folder for entry in second.entries()] == ["base/tuned/default/kl/k1"]
    assert first.aside(".answers") == second.aside(".answers") == tmp_path / "lent" / ".answers"


def test_shelves_without_one_behind_them_share_nothing(tmp_path: Path):
    first, second = (Shelf(tmp_path / name) for name in ("first", "second"))
    first.save(ADDRESS, Result(0.5), {})
    assert not second.holds(ADDRESS)
    assert second.aside(".answers") == tmp_path / "second" / ".answers"


@pytest.mark.parametrize("spoil", ["result.json", "manifest.json"])
def test_what_is_spoilt_on_the_lent_shelf_is_not_taken(tmp_path: Path, spoil: str):
    first, second = (Shelf(tmp_path / name, tmp_path / "lent") for name in ("first", "second"))
    first.save(ADDRESS, Result(0.5), {})
    (Shelf(tmp_path / "lent").path(ADDRESS) / spoil).write_text("{}")
    assert not second.holds(ADDRESS)
    assert not second.path(ADDRESS).exists()
