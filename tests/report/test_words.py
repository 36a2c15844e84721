"""How figures are written, and what the picture shows of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report.sample import sample_findings, without_nulls

from finetrace.core.estimate import Estimate
from finetrace.core.findings import Finding, NullRange, Reading
from finetrace.report import words
from finetrace.report.headline import ALL_SLICES, method_rows, rows
from finetrace.report.strip import strip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "no data"), (float("nan"), "no data"), (0.0, "0"), (0.04213, "0.0421"), (0.1, "0.100"), (1.0, "1"),
        (12345.6, "12,346"), (3.14159e-5, "3.14e-5"), (-0.5, "-0.500"), (1e9, "1e9"), (float("inf"), "∞"), (999.6, "1,000"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, shown: str):
    assert words.number(value) == shown


def _reading(value: float | None, floor: float | None) -> Reading:
    return Reading(Estimate(value, "nats/token", 10, 2), floor)


def test_a_value_is_no_data_below_the_floor_or_a_figure():
    assert words.value_of(_reading(None, 1.0)) == "no data"
    assert words.value_of(_reading(0.5, 1.0)) == "< floor"
    assert words.value_of(_reading(-0.5, 1.0)) == "< floor"
    assert words.value_of(_reading(1.5, 1.0)) == "1.50"
    assert words.value_of(_reading(0.0, None)) == "0"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("org/name", "org/name"), ("/a/b/c", "c"), ("a/b/c", "c"), ("./runs/c", "c"), ("name", "name"), (None, "the base itself"),
        ({"name": "x/y"}, "x/y"), ("C:\\models\\mine", "mine"),
    ],
)  # fmt: skip
def test_models_are_named_in_few_words(given: object, shown: str):
    assert words.model_name(given) == shown


def test_null_ranges_say_how_many():
    assert words.null_range(None) == "none"
    assert words.null_range(NullRange(4, 0.1, 0.2)) == "0.100 – 0.200 (k=4)"
    assert words.null_range(NullRange(4, None, None)) == "no data (k=4)"


def test_rows_keep_the_order_of_the_slices_and_end_with_all_of_them():
    found = sample_findings()
    names = [row.slice for row in rows(found)]
    assert names == [*found.findings["kl"].slices, ALL_SLICES]


def _kl() -> Finding:
    return sample_findings().findings["kl"]


def test_the_picture_keeps_the_order_of_the_figures():
    drawn = strip(_kl())
    assert drawn is not None
    assert drawn.log
    by_value = sorted(drawn.lanes, key=lambda lane: (lane.row.reading and lane.row.reading.value) or 0.0)
    assert [lane.dot for lane in by_value] == sorted(lane.dot or 0.0 for lane in drawn.lanes)
    for lane in drawn.lanes:
        assert lane.whisker is not None
        assert lane.whisker.start <= (lane.dot or -1) <= lane.whisker.start + lane.whisker.width


def test_beyond_the_bar_is_beyond_the_nulls():
    drawn = strip(_kl())
    assert drawn is not None
    for lane in drawn.lanes:
        assert lane.bar is not None
        assert lane.whisker is not None
        assert (lane.whisker.start > lane.bar) == (lane.row.word == "beyond-nulls")


def test_a_far_floor_is_said_and_a_near_one_drawn():
    drawn = strip(_kl())
    assert drawn is not None
    assert drawn.far_floor == "2.1e-6"
    assert all(lane.floor is None for lane in drawn.lanes)
    near = {n: r | {"kl_mean": replace(r["kl_mean"], floor=0.03)} for n, r in _kl().slices.items()}
    drawn = strip(replace(_kl(), slices=near))
    assert drawn is not None
    assert drawn.far_floor == ""
    assert all(lane.floor is not None and 0 < lane.floor < (lane.dot or 0) for lane in drawn.lanes)


def test_signed_and_missing_figures_have_a_picture_too():
    kl = _kl()
    slices = {
        "up": {"kl_mean": _reading(0.5, None)},
        "down": {"kl_mean": _reading(-0.5, None)},
        "none": {"kl_mean": _reading(None, None)},
        "absent": {},
    }
    drawn = strip(replace(kl, slices=slices, verdicts={}))
    assert drawn is not None
    assert not drawn.log
    dots = {lane.row.slice: lane.dot for lane in drawn.lanes}
    assert dots["none"] is None
    assert dots["absent"] is None
    assert (dots["down"] or 0) < (dots["up"] or 0)
    assert strip(replace(kl, slices={"none": slices["none"]}, verdicts={})) is None


def test_all_zero_has_a_picture():
    slices = {name: {"kl_mean": _reading(0.0, 0.0)} for name in ("a", "b")}
    drawn = strip(replace(_kl(), slices=slices, verdicts={}))
    assert drawn is not None
    assert all(0 <= (lane.dot or -1) <= 100 for lane in drawn.lanes)


def test_without_nulls_there_is_no_band_and_no_bar():
    drawn = strip(without_nulls().findings["kl"])
    assert drawn is not None
    assert all(lane.nulls is None and lane.bar is None and lane.dot is not None for lane in drawn.lanes)


def test_sentences_name_the_slices():
    text = " ".join(words.change_sentences(sample_findings()))
    assert "Beyond the nulls on restricted (10.3× the nulls)." in text
    assert "Undecided on lookalike" in text
    assert "still beyond them on restricted." in text
    assert "chat" not in text


def test_a_change_that_is_only_larger_is_said_to_be():
    found = sample_findings()
    kl = found.findings["kl"]
    verdict = replace(kl.verdicts["restricted"], dosed_change="within-nulls")
    kl = replace(kl, verdicts=kl.verdicts | {"restricted": verdict})
    text = " ".join(words.change_sentences(replace(found, findings={"kl": kl})))
    assert "within them on restricted: there it shows as a larger change" in text
    assert "still beyond" not in text


def test_floors_are_rough_and_times_are_read_by_people():
    assert [words.rough(v) for v in (2.2204e-15, 0.0312, 0.0, 5e-7, 1234.0)] == [
        "2.2e-15",
        "0.031",
        "0",
        "5e-7",
        "1,234",
    ]
    assert words.moment("2026-02-11T09:30:12+00:00") == "2026-02-11 09:30 UTC"
    assert words.moment("2026-02-11") == "2026-02-11"
    assert words.moment("<b>") == "<b>"


def test_a_method_without_slices_has_one_row():
    assert [row.slice for row in method_rows(replace(_kl(), slices={}, verdicts={}))] == [ALL_SLICES]
