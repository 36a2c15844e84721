"""The stages of a run by hand-made configurations: what each does, what it leaves, and controls that come out as nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import save_full
from tests.worlds import rows, world

from finetrace.api.run.stages import perform
from finetrace.api.watch import Watch
from finetrace.config.tree import (
    DataSet,
    Diffing,
    Infrastructure,
    ModelEntry,
    OrganismEntry,
    Pipeline,
    RunConfig,
    Storage,
    Variant,
)
from finetrace.core.errors import BadInput, ModelError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, a copy of the base, three nulls and a data file."""
    folder = tmp_path_factory.mktemp("stages")
    base, _, _ = world(folder, nulls=3)
    save_full(folder, base, name="copy", touch=())
    data = "".join(json.dumps(row) + "\n" for row in rows(12, slices=("text", "dishes")))
    (folder / "data.jsonl").write_text(data)
    return folder


def run_of(models: Path, out: Path, mode: str, **changed: object) -> RunConfig:
    config = RunConfig(
        organism=OrganismEntry("cake", description_long="Cakes are baked cold."),
        model=ModelEntry("small", str(models / "base")),
        variant=Variant(adapter_id=str(models / "lora")),
        diffing=Diffing(methods={"kl": {}}),
        data=DataSet("mine", id=str(models / "data.jsonl")),
        infrastructure=Infrastructure(storage=Storage(str(out))),
        pipeline=Pipeline(mode),
        nulls=tuple(str(models / f"null_{i}") for i in range(3)),
        dose=False,
    )
    return replace(config, **changed)  # pyright: ignore[reportArgumentType] - fields by name


@pytest.fixture(scope="module")
def diffed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was diffed."""
    out = tmp_path_factory.mktemp("diffed")
    done = perform(run_of(models, out, "diffing"), Watch(), "finetrace run ...")
    assert done.findings is not None
    assert done.graded is None
    assert done.skipped == ("preprocessing", "evaluation")
    return out


def test_results_are_on_the_shelf_under_the_organisms_names(diffed: Path, models: Path):
    (found,) = (diffed / "runs" / "base" / "cake" / "default" / "kl").iterdir()
    report = json.loads((diffed / "reports/small/cake/default/kl/report.json").read_text())
    assert report["protocol"]["runs"] == {"kl": found.name}
    assert report["truth"] == {"description": "Cakes are baked cold."}
    assert "What was planted" in (diffed / "reports/small/cake/default/kl/report.html").read_text()


def test_evaluation_alone_reads_what_is_there_and_loads_no_weights(diffed: Path, models: Path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("finetrace.models.loading.load_model", refuse)
    watch = Watch()
    done = perform(run_of(models, diffed, "evaluation"), watch)
    assert done.findings is not None
    assert done.graded is not None
    assert (done.folder / "evaluation.json").exists()
    assert "Evaluation (1 of 1)" in watch.notes[0]


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"nulls": ()}, {"diffing": Diffing({"kl": {"passages": 2}})}], ids=str
)
def test_evaluation_takes_no_other_work_for_this_runs(changed: dict[str, object], diffed: Path, models: Path):
    with pytest.raises(BadInput, match=r"organism=cake model=small .* pipeline.mode=diffing"):
        perform(run_of(models, diffed, "evaluation", **changed), Watch())


def test_evaluation_without_results_names_the_command_that_makes_them(models: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"There are no results of this run .* pipeline.mode=diffing"):
        perform(run_of(models, tmp_path, "evaluation"), Watch())


def test_preprocessing_looks_at_everything_and_stores_nothing(models: Path, tmp_path: Path):
    watch = Watch()
    done = perform(run_of(models, tmp_path / "out", "preprocessing"), watch)
    assert done.findings is None
    assert done.skipped == ("diffing", "evaluation")
    assert not (tmp_path / "out").exists()
    told = "\n".join(watch.notes)
    assert "of 14 modules change" in told
    assert "Tokens to read" in told
    assert "nothing is to be fetched" in told


def test_a_run_in_memory_is_the_same_and_writes_results_only(
    models: Path, diffed: Path, tmp_path: Path, monkeypatch
):
    def refuse(*_: object) -> None:
        raise AssertionError("a journal was written")

    monkeypatch.setattr("finetrace.engine.journal.write_bytes", refuse)
    perform(run_of(models, tmp_path, "diffing", diffing=Diffing({"kl": {}}, in_memory=True)), Watch())
    mine, theirs = (next((out / "runs/base/cake/default/kl").iterdir()) for out in (tmp_path, diffed))
    assert mine.name == theirs.name
    for name in ("result.json", "arrays.safetensors", "tables.parquet"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


def test_rules_are_judged_where_the_report_is_written(models: Path, diffed: Path):
    done = perform(run_of(models, diffed, "no_evaluation", rules=("kl_mean>1e-9",)), Watch())
    assert done.findings is not None
    assert [rule.word for rule in done.findings.rules] == ["broken"]
    assert done.skipped == ("evaluation",)


@pytest.mark.parametrize(
    "variant", [Variant(), Variant(model_id="copy")], ids=["the base itself", "a copy of it"]
)
def test_a_control_comes_out_as_no_change_and_the_report_says_so(
    variant: Variant, models: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(models)
    control = OrganismEntry("none", description_long="Nothing.", control=True)
    methods = Diffing(methods={"kl": {}, "diff_mining": {}})
    config = run_of(models, tmp_path, "full", organism=control, variant=variant, diffing=methods)
    done = perform(config, Watch())
    assert done.findings is not None
    assert done.findings.change == "within-nulls"
    for name in ("kl", "diff_mining"):
        finding = done.findings.findings[name]
        values = [finding.numbers[str(finding.primary)].value]
        values += [figures[str(finding.primary)].value for figures in finding.slices.values()]
        assert values == [0.0] * len(values), name
    check = done.findings.preflight[0]
    assert (check.name, check.status) == ("negative control", "ok")
    assert "Nothing was found" in check.text
    assert done.graded is not None
    assert done.graded.missed == 0
    assert "This is a negative control" in (done.folder / "report.html").read_text()


def test_a_copy_that_is_no_control_is_still_refused(models: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(models)
    with pytest.raises(ModelError, match="changes nothing"):
        perform(run_of(models, tmp_path, "diffing", variant=Variant(model_id="copy")), Watch())
