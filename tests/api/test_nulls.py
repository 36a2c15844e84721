"""`--null train`: nulls made here, judged at the pair's dose, resumed whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import save_base, save_lora
from tests.worlds import rows

from finetrace.api import nulls
from finetrace.api.audit import rows_for, run
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.errors import ConfigErrors
from finetrace.report.words import change_sentences


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "STEPS", 4)
    monkeypatch.setattr(nulls, "COUNT", 3)


def ask(folder: Path, **more: object) -> Request:
    base = save_base(folder)
    # So small a change that four steps of training can be scaled to it.
    tuned = save_lora(folder, base, r=2, targets=["q_proj", "v_proj"], scale=0.003)
    request = Request(str(base), str(tuned), data=rows(24), nulls=("train",), out=folder / "out")
    return replace(request, **more)  # pyright: ignore[reportArgumentType]


def test_trains_nulls_of_the_adapters_shape_and_judges_at_its_dose(tmp_path: Path):
    request = ask(tmp_path)
    found = run(request, check(request), Watch())
    assert found.findings.protocol["nulls"] == ["trained_1", "trained_2", "trained_3"]
    assert found.findings.protocol["verdict_against"] == "nulls at the pair's dose"
    config = (tmp_path / "out" / "nulls" / "trained_1" / "adapter_config.json").read_text()
    assert '"r": 2' in config
    assert str(tmp_path) not in config.replace(str(request.base), "")
    verdict = found["kl"].verdicts["text"]
    assert verdict.k == 3
    assert verdict.ratio == pytest.approx(1, abs=0.1), "on `text` the nulls were scaled to the pair"
    reading = found["kl"].slices["text"]["kl_mean"]
    assert reading.nulls == reading.dosed, "the nulls that are shown are those that decided"
    asked = {label.partition(":")[0] for label in found.results["token_depth"]}
    assert {"pair", "dose"} <= asked, "methods that ask read the nulls that decide"
    assert any("of another kind" in sentence for sentence in change_sentences(found.findings))


def test_trained_nulls_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = ask(tmp_path)
    first = nulls.with_trained_nulls(request, Watch())
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "nulls").rglob("*") if p.is_file()}
    (Path(first.nulls[1]) / nulls.STAMP).unlink()  # as if killed in the second
    assert nulls.with_trained_nulls(request, Watch()).nulls == first.nulls
    assert {p: p.read_bytes() for p in (tmp_path / "out" / "nulls").rglob("*") if p.is_file()} == before

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(nulls, "_train", never)
    nulls.with_trained_nulls(request, Watch())


def test_nulls_are_not_trained_on_what_is_read():
    request = Request("base", "tuned", nulls=("train",))
    trained = {row.text or row.messages for row in nulls.training_rows(request)}
    read = {row.text or row.messages for row in rows_for(request, held_out=True)}
    assert trained
    assert read
    assert not trained & read


@pytest.mark.parametrize("wrong", [{"nulls": ("train", "somewhere")}, {"dose": False}])
def test_train_stands_alone(wrong: dict[str, object], tmp_path: Path):
    with pytest.raises(ConfigErrors, match="train"):
        check(ask(tmp_path, **wrong))
