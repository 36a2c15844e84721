"""Comparisons of runs whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.api.compare.shelves import NULLS, PROTOCOL, put, with_nulls

from finetrace.api.compare import compare, write
from finetrace.api.compare.cells import _says
from finetrace.api.request import choose
from finetrace.api.verdicts import slice_verdicts
from finetrace.core.comparison import Cell, Comparison
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.core.findings import SliceVerdict
from finetrace.core.shelf import Shelf, figures

CENTRE = float(np.exp(np.log(NULLS).mean()))


def over(root: Path, *runs: str, **options: Any) -> Comparison:
    return compare(runs, folder=root, **options)


def at(found: Comparison, row: str, column: str, matrix: int = 0) -> Cell:
    one = found.matrices[matrix]
    cell = one.cells[one.rows.index(row)][one.columns.index(column)]
    if cell is None:
        raise LookupError(f"no run at {row}, {column}")
    return cell


@pytest.fixture(scope="module")
def cakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three organisms: far beyond the nulls, one of them at three mix ratios, and as the nulls are."""
    root = with_nulls(tmp_path_factory.mktemp("cakes"))
    put(root, "cake", 0.5)
    put(root, "cake", 0.3, variant="mix1-0p5")
    put(root, "cake", 0.2, variant="mix1-1p0")
    put(root, "cake", 0.1, variant="mix1-2p0")
    put(root, "fda", 0.4)
    put(root, "plain", 0.011)
    put(root, "org/small", 1e-9, contrast="self")
    return root


def test_a_matrix_has_each_runs_own_number(cakes: Path):
    found = over(cakes)
    assert (found.method, found.number, found.unit, found.slice) == ("kl", "kl_mean", "nats/token", None)
    (matrix,) = found.matrices
    assert matrix.rows == ("cake", "fda", "plain")
    assert matrix.columns == ("default", "mix1-0p5", "mix1-1p0", "mix1-2p0")
    values = [[None if cell is None else cell.reading.value for cell in row] for row in matrix.cells]
    assert values == [[0.5, 0.3, 0.2, 0.1], [0.4, None, None, None], [0.011, None, None, None]]
    cell = at(found, "fda", "default")
    assert (cell.estimate.low, cell.estimate.high) == (0.4 * 0.9, 0.4 * 1.1)
    assert cell.reading.floor == 1e-9
    nulls = cell.reading.nulls
    assert nulls is not None
    assert (nulls.k, nulls.low, nulls.high) == (4, min(NULLS), max(NULLS))


def test_the_ratio_is_to_the_nulls_and_the_words_are_an_audits(cakes: Path):
    found = over(cakes, slice="text")
    beyond, within = at(found, "cake", "default"), at(found, "plain", "default")
    assert beyond.word == "beyond-nulls"
    assert within.word == "within-nulls"
    assert beyond.verdict is not None
    assert beyond.verdict.ratio == pytest.approx(0.5 / CENTRE)
    assert beyond.where == "text"
    assert found.family == 6  # the cells, on one slice


def test_over_all_slices_the_word_is_what_the_slices_come_to(cakes: Path):
    cell = at(over(cakes), "cake", "default")
    assert set(cell.verdicts) == {"text", "chat"}
    assert cell.word == "beyond-nulls"
    assert cell.reading.value == 0.5


def test_the_ratio_is_of_a_slice_that_has_the_cells_word():
    """A slice that is within may have the larger ratio, where its nulls differ more."""
    wide = SliceVerdict("within-nulls", 5.0, 4.0, 6.0, 9.0, 2.0, None, 4, 0.2, 0.4, "")
    open_ = SliceVerdict("undecided", 2.5, 1.5, 3.5, 3.0, 2.0, None, 4, 0.1, 0.4, "it crosses")
    found = {"chat": wide, "text": open_}
    assert max(found, key=lambda name: _says(found[name], "undecided")) == "text"
    assert max(found, key=lambda name: _says(found[name], "within-nulls")) == "chat"


def test_one_run_alone_is_judged_as_its_audit_would(cakes: Path):
    found = over(cakes, "organism=fda")
    shelf = Shelf(cakes / "runs")
    results = {
        entry.contrast: figures(shelf.root / entry.folder)
        for entry in shelf.entries()
        if entry.tuned == "fda" or entry.contrast != "pair"
    }
    audit = slice_verdicts(choose("kl", {}), results, tests=2)
    cell = found.cells[0]
    for name, verdict in audit.items():
        assert cell.verdicts[name].change == verdict.change
        assert cell.verdicts[name].ratio == verdict.ratio
        assert cell.verdicts[name].p_holm == verdict.p_holm


def test_more_runs_make_a_larger_family(cakes: Path):
    alone = over(cakes, "organism=plain", slice="text").cells[0].verdict
    many = at(over(cakes, slice="text"), "plain", "default").verdict
    assert alone is not None
    assert many is not None
    assert alone.p == many.p
    assert alone.p_holm == alone.p
    assert many.p is not None
    assert many.p_holm is not None
    assert many.p_holm >= many.p


@pytest.mark.parametrize("k", [0, 2])
def test_too_few_nulls_decide_nothing(k: int, tmp_path: Path):
    with_nulls(tmp_path, NULLS[:k])
    put(tmp_path, "cake", 5.0)
    found = over(tmp_path)
    assert found.cells[0].word == "undecided"
    assert "too few nulls" in found.cells[0].reason
    assert any("fewer than 3 nulls" in text for text in found.warnings)


def test_only_other_models_read_alike_and_not_made_here_are_nulls(tmp_path: Path):
    with_nulls(tmp_path, NULLS[:2])
    put(tmp_path, "cake", 5.0)
    put(tmp_path, "again", 0.01, contrast="null:again", weights="null_1 default")
    put(tmp_path, "itself", 5.0, contrast="null:itself", weights="cake default")
    put(tmp_path, "trained_1", 0.01, contrast="null:trained_1", trained_here=True)
    put(tmp_path, "seeded", 0.01, contrast="null:seeded", protocol={**PROTOCOL, "seed": 1})
    put(tmp_path, "dosed", 0.01, contrast="dose:dosed")
    put(tmp_path, "elsewhere", 0.01, contrast="null:elsewhere", protocol=None)
    found = over(tmp_path)
    nulls = found.cells[0].reading.nulls
    assert nulls is not None
    assert nulls.k == 2
    assert found.cells[0].word == "undecided"
    assert any("trained itself" in text for text in found.warnings)


def test_runs_of_other_settings_are_refused_and_all_is_said(tmp_path: Path):
    put(tmp_path, "cake", 0.5)
    put(tmp_path, "fda", 0.4)
    other = {
        **PROTOCOL,
        "seed": 1,
        "dtype": "torch.bfloat16",
        "shape": {**PROTOCOL["shape"], "batch_size": 8},
    }
    odd = put(tmp_path, "odd", 0.3, protocol=other)
    with pytest.raises(ConfigErrors) as refused:
        over(tmp_path)
    said = "\n".join(refused.value.problems)
    assert "the seed differs: 0 (2 runs), 1 (1 run)" in said
    assert "the dtype differs: float32 (2 runs), bfloat16 (1 run)" in said
    assert "the batch size differs" in said
    assert str(odd) in said
    assert "--anyway" in said
    assert len(over(tmp_path, "seed=0").cells) == 2
    together = over(tmp_path, anyway=True)
    assert len(together.cells) == 3
    assert len(together.apart) == 3
    assert "seed" not in together.settings
    assert together.settings["context"] is None


def test_a_run_that_does_not_say_how_it_was_made_is_like_no_other(tmp_path: Path):
    put(tmp_path, "cake", 0.5, protocol=None)
    assert over(tmp_path).cells[0].reading.value == 0.5
    put(tmp_path, "fda", 0.4)
    with pytest.raises(ConfigErrors, match="made before a manifest said"):
        over(tmp_path)
    assert over(tmp_path, anyway=True).settings == {}


def test_two_trainings_of_one_name_are_told_apart(tmp_path: Path):
    put(tmp_path, "cake", 0.5, weights="one" * 10)
    put(tmp_path, "cake", 0.4, weights="two" * 10)
    found = over(tmp_path)
    assert sorted(found.matrices[0].rows) == ["cake (oneone)", "cake (twotwo)"]
    put(tmp_path, "cake", 0.3, protocol={**PROTOCOL, "seed": 7}, weights="one" * 10)
    labels = {cell.label for cell in over(tmp_path, anyway=True).cells}
    assert "cake (seed 7)" in labels
    assert len(labels) == 3


def test_differences_are_paired_over_the_same_texts(cakes: Path):
    found = over(cakes, "organism=cake,fda", "variant=default")
    (one,) = found.differences
    values = {"cake": 0.5, "fda": 0.4}
    assert one.value == pytest.approx(values[one.second] - values[one.first])
    drawn = {cell.organism: figures(Path(cell.folder)).numbers["kl_mean"].replicates for cell in found.cells}
    sd = float((np.asarray(drawn[one.second]) - np.asarray(drawn[one.first])).std(ddof=1)) * np.sqrt(40 / 39)
    assert one.low is not None
    assert one.high is not None
    assert (one.high - one.low) / 2 == pytest.approx(2.0227 * sd, rel=1e-4)  # t of 39 degrees of freedom
    assert one.q == one.p


def test_runs_on_other_texts_are_not_subtracted(tmp_path: Path):
    put(tmp_path, "cake", 0.5)
    put(tmp_path, "fda", 0.4, protocol={**PROTOCOL, "corpus": "d" * 64})
    found = over(tmp_path, anyway=True)
    assert found.differences == ()
    assert "same texts" in found.no_differences


def test_a_curve_runs_along_the_mix_ratio(cakes: Path):
    (curve,) = over(cakes).curves
    assert (curve.name, curve.what) == ("cake", "pretraining mixed in per row")
    assert curve.at == (0.5, 1.0, 2.0)
    assert [cell.reading.value for cell in curve.cells] == [0.3, 0.2, 0.1]
    turned = over(cakes, by="dial")
    assert turned.matrices[0].columns == ("0.5", "1", "2")
    assert turned.matrices[0].rows == ("cake",)


def test_checkpoints_that_were_audited_by_their_folders_make_a_curve(tmp_path: Path):
    for step in (1000, 200, 30):
        put(tmp_path, f"checkpoint-{step}", step / 1000)
    (curve,) = over(tmp_path).curves
    assert (curve.what, curve.at) == ("steps", (30.0, 200.0, 1000.0))
    assert [cell.reading.value for cell in curve.cells] == [0.03, 0.2, 1.0]


def test_without_a_dial_there_is_nothing_to_lay_out_by_it(tmp_path: Path):
    put(tmp_path, "cake", 0.5)
    with pytest.raises(BadInput, match="how far something was turned"):
        over(tmp_path, by="dial")


def test_by_organism_turns_the_matrix(cakes: Path):
    (matrix,) = over(cakes, by="organism").matrices
    assert matrix.columns == ("cake", "fda", "plain")
    assert matrix.rows[0] == "default"


def test_bases_have_matrices_of_their_own_and_share_one_only_by_model(tmp_path: Path):
    large = {**PROTOCOL, "base": "l" * 64, "tokenizer": "u" * 64, "corpus": "e" * 64}
    put(tmp_path, "cake", 0.5)
    put(tmp_path, "cake", 0.25, base="org/large", protocol=large)
    apart = over(tmp_path)
    assert [matrix.title for matrix in apart.matrices] == ["org/large", "org/small"]
    (together,) = over(tmp_path, by="model").matrices
    assert together.columns == ("org/large", "org/small")
    assert [cell and cell.reading.value for cell in together.cells[0]] == [0.25, 0.5]
    assert any("several bases" in text for text in over(tmp_path, by="model").warnings)
    put(tmp_path, "fda", 0.1, base="org/large", protocol=large, data="other.jsonl")
    with pytest.raises(ConfigErrors, match="the texts' name differs"):
        over(tmp_path, by="model")


def test_a_number_that_no_verdict_is_about_gets_none(tmp_path: Path):
    numbers: dict[str, float | None] = {"kl_mean": 0.5, "js_mean": 0.05}
    with_nulls(tmp_path, numbers={"kl_mean": 0.01, "js_mean": 0.001})
    put(tmp_path, "cake", None, numbers=numbers)
    cell = over(tmp_path, number="js_mean").cells[0]
    assert (cell.word, cell.verdicts) == (None, {})
    assert cell.reading.nulls is not None
    assert cell.reading.nulls.k == 4


def test_a_measure_gets_the_safety_word_of_its_audit(tmp_path: Path):
    put(tmp_path, "eroded", None, method="behaviour", numbers={"refusal_drop": 0.6})
    put(tmp_path, "kept", None, method="behaviour", numbers={"refusal_drop": 0.001})
    found = over(tmp_path)
    assert found.number == "refusal_drop"
    assert at(found, "eroded", "default").word == "regressed"
    assert at(found, "kept", "default").word == "within-margin"
    assert found.family == 0


def test_a_result_of_another_version_is_shown_and_not_judged(tmp_path: Path):
    old = {**PROTOCOL, "version": 0}
    with_nulls(tmp_path, protocol=old, version=0)
    put(tmp_path, "cake", 5.0, protocol=old, version=0)
    cell = over(tmp_path).cells[0]
    assert cell.reading.value == 5.0
    assert cell.word == "undecided"
    assert "version 0" in cell.reason


def test_no_data_is_no_number(tmp_path: Path):
    put(tmp_path, "cake", 0.5)
    put(tmp_path, "empty", None)
    found = over(tmp_path)
    assert at(found, "empty", "default").reading.value is None
    assert any("No data: empty" in text for text in found.warnings)
    assert found.differences == ()


def test_runs_are_named_by_folder_results_key_or_filter(cakes: Path, tmp_path: Path):
    fda = over(cakes, "organism=fda").cells[0]
    for word in (fda.folder, fda.key, fda.key[:8], "organism=fd*"):
        assert [cell.key for cell in over(cakes, word).cells] == [fda.key]
    for word in (cakes, cakes / "runs"):
        assert len(over(tmp_path, str(word)).cells) == 6
    assert len(over(cakes, fda.folder, fda.key, "organism=fda").cells) == 1
    nulls = {cell.reading.nulls.k for cell in over(tmp_path, fda.folder).cells if cell.reading.nulls}
    assert nulls == {4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fda",), "organism=fda"),
        (("fdaa",), "no run 'fdaa'"),
        (("organism=nothing",), "fits organism=nothing"),
        (("organsim=cake",), "Did you mean 'organism'"),
    ],
)
def test_a_word_that_names_nothing_is_an_error(words: tuple[str, ...], said: str, cakes: Path):
    with pytest.raises(BadInput, match=said):
        over(cakes, *words)


def test_one_method_at_a_time(tmp_path: Path):
    put(tmp_path, "cake", 0.5)
    put(tmp_path, "cake", None, method="behaviour", numbers={"refusal_drop": 0.6})
    with pytest.raises(BadInput, match="behaviour, kl"):
        over(tmp_path)
    assert over(tmp_path, method="kl").number == "kl_mean"
    with pytest.raises(BadInput, match="They are of: behaviour, kl"):
        over(tmp_path, method="diff_mining")


@pytest.mark.parametrize("options", [{"number": "kl_maen"}, {"slice": "chatt"}, {"by": "colour"}])
def test_unknown_numbers_slices_and_layouts_name_what_there_is(options: dict[str, str], cakes: Path):
    with pytest.raises(BadInput, match="There is no"):
        over(cakes, **options)


def test_a_changed_result_is_found_out(tmp_path: Path):
    folder = put(tmp_path, "cake", 0.5)
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace("0.5", "0.1"))
    with pytest.raises(BadInput, match="not a whole run"):
        over(tmp_path)


def test_what_is_written_can_be_read(cakes: Path, tmp_path: Path):
    found = over(cakes)
    page = write(found, tmp_path)
    saved = json.loads((tmp_path / "compare.json").read_text())
    assert page.name == "compare.html"
    place = saved["matrices"][0]["cells"][saved["matrices"][0]["rows"].index("fda")][0]
    assert saved["runs"][place]["organism"] == "fda"
    assert saved["runs"][place]["value"] == 0.4
    table = pq.read_table(tmp_path / "compare.parquet").to_pylist()
    assert {row["label"]: row["value"] for row in table}["plain"] == 0.011
    assert {row["word"] for row in table} == {"beyond-nulls", "within-nulls"}
