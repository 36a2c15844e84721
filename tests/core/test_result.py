"""Results survive the shelf to the last bit, and what is not a number never gets there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrace.core.errors import BadInput, FinetraceError
from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns, decode, encode
from finetrace.core.shelf import Address, Shelf, slug


@dataclass(frozen=True)
class Part:
    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Found:
    numbers: dict[str, Estimate]
    parts: tuple[Part, ...]
    array: np.ndarray
    table: Columns
    empty: Columns
    nothing: float | None
    count: int


def made() -> Found:
    return Found(
        numbers={"a": Estimate(1.5, "nats", 10, 3, 1.0, 2.0, np.array([1.0, np.nan, 2.0]))},
        parts=(Part("x", (1.0, None)), Part("y", ())),
        array=np.arange(6, dtype=np.int64).reshape(2, 3),
        table=Columns({"row": np.array([0, 1]), "text": ["a", "b"], "v": np.array([0.1, 0.2])}),
        empty=Columns({"row": np.array([], dtype=np.int64)}),
        nothing=None,
        count=3,
    )


def address(key: str = "k") -> Address:
    return Address("org/base", "me/tuned", "default", "kl", key)


def assert_same(one: Found, other: Found) -> None:
    assert other.parts == one.parts
    assert other.array.dtype == one.array.dtype
    np.testing.assert_array_equal(other.array, one.array)
    assert other.table.data["text"] == ["a", "b"]
    np.testing.assert_array_equal(other.table.data["v"], one.table.data["v"])
    assert len(other.empty) == 0
    assert other.nothing is None
    assert other.numbers["a"].low == 1.0
    np.testing.assert_array_equal(other.numbers["a"].replicates, one.numbers["a"].replicates)


def test_round_trip_in_memory_and_on_the_shelf(tmp_path):
    assert_same(made(), decode(Found, encode(made())))
    shelf = Shelf(tmp_path)
    folder = shelf.save(address(), made(), {"method": "kl"})
    assert sorted(p.name for p in folder.iterdir()) == [
        "arrays.safetensors",
        "manifest.json",
        "result.json",
        "tables.parquet",
    ]
    assert_same(made(), shelf.load(address(), Found))
    assert [run["method"] for run in shelf.runs()] == ["kl"]


@pytest.mark.parametrize("name", ["result.json", "arrays.safetensors", "tables.parquet", "manifest.json"])
def test_a_run_with_a_changed_or_missing_file_is_not_whole(tmp_path, name):
    shelf = Shelf(tmp_path)
    folder = shelf.save(address(), made(), {})
    assert shelf.holds(address())
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert not shelf.holds(address())
    with pytest.raises(BadInput, match="not a whole run"):
        shelf.load(address(), Found)
    (folder / name).unlink()
    assert not shelf.holds(address())


def test_nan_is_refused_in_scalars():
    @dataclass(frozen=True)
    class Bad:
        value: float

    with pytest.raises(FinetraceError, match="None where there is no number"):
        encode(Bad(float("nan")))


def test_foreign_objects_are_refused():
    @dataclass(frozen=True)
    class Bad:
        value: object

    with pytest.raises(FinetraceError, match="cannot hold"):
        encode(Bad(object()))


@given(st.text(max_size=200))
def test_every_name_becomes_one_safe_path_component(name):
    part = slug(name)
    assert part not in ("", ".", "..")
    assert not set(part) & set("/\\\0:")
    assert len(part) <= 90
    assert not part.startswith(".")


@given(st.text(max_size=40), st.text(max_size=40))
def test_different_names_do_not_collide(one, other):
    if one.strip("/") != other.strip("/"):
        assert slug(one) != slug(other) or one.strip("/").replace("/", "--") == other.strip("/").replace(
            "/", "--"
        )
