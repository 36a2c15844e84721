"""Methods that run on their own: on the pair and every null, resumed one contrast at a time, judged without a floor."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import rows, world

import finetrace as ft
from finetrace.api.audit import run
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.errors import ConfigErrors

CARD = '''
from dataclasses import dataclass
from finetrace.core.card import Method, Needs

@dataclass(frozen=True)
class Config:
    """factor: what every figure is multiplied by."""
    factor: float = 1.0

METHOD = Method(
    name="{name}", version=1, summary="For tests.", config=Config,
    needs=lambda config: Needs({needs}), primary="size",
)
'''
RESULT = """
from dataclasses import dataclass
from finetrace.core.estimate import Estimate

@dataclass(frozen=True)
class Result:
    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    note: str
"""
RUN = """
import json
from finetrace.core.estimate import Estimate
from finetrace.methods.{name}.result import Result
from pathlib import Path

def run(config, desk, seen):
    log = Path(__file__).parent / "log"
    with log.open("a") as out:
        out.write(json.dumps([desk.side, desk.scale]) + "\\n")
    if (Path(__file__).parent / "die").exists() and desk.side == "null_1":
        raise KeyboardInterrupt
    examples = desk.samples("safety") if desk.has("safety") else []
    desk.scratch.mkdir(parents=True, exist_ok=True)
    (desk.scratch / "half").write_text("x")
    desk.advance(1, 2)
    drawn = desk.once("drawn", lambda: float(desk.generator("a").random()))
    with desk.open() as model:
        assert model is not None
    value = config.factor * (1.0 + len(desk.side) + drawn + len(examples)) * desk.scale
    estimate = Estimate(value, "units", 10, None)
    return Result({{"size": estimate}}, {{"weights": {{"size": estimate}}}}, repr(seen is None))
"""
OBSERVE = """
from finetrace.methods.kl import Config
from finetrace.methods.kl.observe import KL

def observer(config, subject):
    return KL(Config(), subject)
"""
DESCRIBE = """
from finetrace.core.page import Number, Page

def describe(result, nulls=()):
    return Page("Toy", "A toy.", (Number("size", "Size", result.numbers["size"]),))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a method with `run` alone in a folder of its own; returns the folder."""
    import finetrace.methods as home

    monkeypatch.setattr(home, "__path__", [*home.__path__, str(tmp_path / "methods")])

    def make(name: str = "toy", needs: str = "") -> Path:
        folder = tmp_path / "methods" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(CARD.replace("{name}", name).replace("{needs}", needs))
        (folder / "result.py").write_text(RESULT)
        (folder / "run.py").write_text(RUN.format(name=name))
        (folder / "describe.py").write_text(DESCRIBE)
        return folder

    yield make
    for module in [m for m in sys.modules if m.startswith("finetrace.methods.toy")]:
        del sys.modules[module]


def audit(tmp_path: Path, *, nulls: int = 3, **options: Any) -> Any:
    base, tuned, others = _world(tmp_path, nulls)
    request = Request(
        str(base), str(tuned), data=rows(12), nulls=tuple(map(str, others)), out=tmp_path / "out",
        methods=("toy",), dose=False,
    )  # fmt: skip
    request = replace(request, **options)
    return run(request, check(request), Watch())


def _world(tmp_path: Path, nulls: int) -> tuple[Path, Path, list[Path]]:
    if not (tmp_path / "base").exists():
        return world(tmp_path, nulls=nulls)
    return tmp_path / "base", tmp_path / "lora", [tmp_path / f"null_{i}" for i in range(nulls)]


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split("\n")[:-1]


def test_it_runs_on_the_pair_and_every_null_and_not_on_the_floor(tmp_path: Path, toy: Any):
    folder = toy()
    found = audit(tmp_path)
    assert log(folder) == [f'["{side}", 1.0]' for side in ("tuned", "null_0", "null_1", "null_2")]
    reading = found["toy"].numbers["size"]
    assert reading.floor is None
    assert reading.nulls is not None
    assert reading.nulls.k == 3
    assert found["toy"].verdicts["weights"].k == 3
    assert found.results["toy"]["pair"].note == "True", "there is no observer, so nothing was seen"


def test_a_killed_audit_goes_on_where_it_was(tmp_path: Path, toy: Any):
    folder = toy()
    (folder / "die").write_text("")
    with pytest.raises(KeyboardInterrupt):
        audit(tmp_path)
    assert len(log(folder)) == 3
    (folder / "die").unlink()
    audit(tmp_path)
    assert log(folder)[3:] == ['["null_1", 1.0]', '["null_2", 1.0]']
    assert not list((tmp_path / "out").rglob("half")), "scratch goes when the result is saved"


def test_other_texts_do_not_make_it_again_but_another_option_does(tmp_path: Path, toy: Any):
    folder = toy()
    first = audit(tmp_path)
    audit(tmp_path, data=rows(15, seed=4))
    assert len(log(folder)) == 4
    doubled = audit(tmp_path, settings=("toy.factor=2",))
    assert len(log(folder)) == 8
    assert doubled["toy"].numbers["size"].value == 2 * first["toy"].numbers["size"].value


def test_it_says_itself_whether_it_wants_the_floor_and_the_dose(tmp_path: Path, toy: Any):
    folder = toy(needs="floor=True, dosed=False")
    found = audit(tmp_path, nulls=1, dose=True)
    assert [line.split('"')[1] for line in log(folder)] == ["tuned", "base", "null_0"]
    assert found["toy"].numbers["size"].floor is not None


def test_nulls_at_the_pairs_dose_are_read_at_their_scale(tmp_path: Path, toy: Any):
    folder = toy()
    found = audit(tmp_path, nulls=1, dose=True)
    assert len(log(folder)) == 3
    assert '"null_0", 1.0' in log(folder)[1]
    assert '"null_0", 1.0' not in log(folder)[2]
    assert found["toy"].numbers["size"].dosed is not None


def test_it_runs_beside_an_observer(tmp_path: Path, toy: Any):
    toy()
    found = audit(tmp_path, methods=("kl", "toy"))
    assert found["kl"].numbers["kl_mean"].floor is not None
    assert found["toy"].numbers["size"].value is not None
    written = tmp_path / "page.html"
    found.report(written)
    assert "10 weights" in written.read_text()


def test_an_observers_result_reaches_run(tmp_path: Path, toy: Any):
    folder = toy(needs="logits=True")
    (folder / "observe.py").write_text(OBSERVE)
    found = audit(tmp_path)
    assert found.results["toy"]["pair"].note == "False"
    assert set(found.results["toy"]) == {"pair", "null:null_0", "null:null_1", "null:null_2"}


CHATS = [
    {"messages": [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w1 w2"}]}
    for i in range(4)
]


def test_calibration_sets_reach_the_desk_and_the_key(tmp_path: Path, toy: Any):
    folder = toy(needs='calibration=("safety",)')
    first = audit(tmp_path, calibration={"safety": CHATS})
    again = audit(tmp_path, calibration={"safety": CHATS})
    other = audit(tmp_path, calibration={"safety": CHATS[:2]})
    assert len(log(folder)) == 8
    values = [found["toy"].numbers["size"].value for found in (first, again, other)]
    assert values[0] == values[1] == pytest.approx(values[2] + 2)


def test_all_that_is_wrong_with_the_sets_is_said_at_once(tmp_path: Path, toy: Any):
    toy(needs='calibration=("safety", "utility", "placebo")')
    unanswered = tmp_path / "chats.jsonl"
    unanswered.write_text('{"messages": [{"role": "user", "content": "w1"}]}\n')
    with pytest.raises(ConfigErrors) as error:
        audit(
            tmp_path, calibration={"safety": unanswered, "utility": tmp_path / "none.jsonl", "utilty": CHATS}
        )
    one, two, three, four = error.value.problems
    assert "The safety set, row 1" in one
    assert "does not exist" in two
    assert "Did you mean 'utility'?" in three
    assert "needs a calibration set 'placebo': pass --placebo-set FILE" in four


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("toy.factr=2", "has no option 'factr'. Did you mean 'factor'?"),
        ("toi.factor=2", "Did you mean 'toy'?"),
        ("toy.factor=two", "toy.factor is 'two'; it takes a number."),
        ("factor", "is not a setting"),
    ],
)
def test_a_wrong_setting_is_said(text: str, says: str, tmp_path: Path, toy: Any):
    toy()
    with pytest.raises(ConfigErrors, match=says.replace("?", r"\?")):
        audit(tmp_path, settings=(text,))


def test_the_floor_is_not_needed_in_python(tmp_path: Path, toy: Any):
    toy()
    base, tuned, _ = _world(tmp_path, 0)
    found = ft.diff(ft.load_pair(str(base), str(tuned)), rows(9), methods=["toy"], out=tmp_path / "out")
    assert found.change == "undecided"
