"""A sweep is its runs alone, with less loading: the same results under the same keys, in the order in which they were typed."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import rows, world

from finetrace.api.run import sweep, units
from finetrace.api.run.shelved import at_hand
from finetrace.api.run.spec import spec_for
from finetrace.api.run.stages import Done, perform
from finetrace.api.run.sweep import Ran, perform_all, worst_code
from finetrace.api.run.units import Job, order
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
from finetrace.core.errors import ModelError
from finetrace.engine import ray_pool
from finetrace.models import loading

Run = tuple[RunConfig, tuple[str, ...]]


@dataclass(frozen=True)
class Places:
    base: Path
    adapters: dict[str, Path]
    data: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("places")
    base, big, (small,) = world(folder, nulls=1)
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(9)), encoding="utf-8")
    return Places(base, {"big": big, "small": small, "gone": folder / "gone"}, data)


def config(places: Places, out: Path, organism: str, method: str, **changes: Any) -> RunConfig:
    return RunConfig(
        organism=OrganismEntry(organism),
        model=ModelEntry("tiny", str(places.base)),
        variant=Variant(adapter_id=str(places.adapters[organism])),
        diffing=Diffing(methods={method: changes.pop("options", {})}),
        data=DataSet(id=str(places.data)),
        infrastructure=Infrastructure(storage=Storage(str(out))),
        pipeline=Pipeline("diffing"),
        **changes,
    )


def run(places: Places, out: Path, organism: str, method: str, **changes: Any) -> Run:
    found = config(places, out, organism, method, **changes)
    return found, (f"organism={organism}", f"diffing/method={method}")


class Told(Watch):
    """Keeps every line of every watch, and what work began."""

    lines: list[str]
    begun: list[str]

    def tell(self, line: str) -> None:
        super().tell(line)
        self.lines.append(line)

    def begin(self, what: str, total: int, unit: str = "tokens") -> None:
        self.begun.append(what)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    monkeypatch.setattr(Told, "lines", [], raising=False)
    monkeypatch.setattr(Told, "begun", [], raising=False)
    return Told


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints whose weights are read."""
    found, real = [], loading.load_model

    def load(source: Any, **options: Any) -> Any:
        found.append(source.name)
        return real(source, **options)

    monkeypatch.setattr(loading, "load_model", load)
    return found


def results(out: Path) -> dict[str, bytes]:
    """Every file of a shelf but the manifests, which hold times."""
    files = [path for path in (out / "runs").glob("*/*/*/*/*/*") if path.name != "manifest.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def test_a_sweep_is_its_runs_alone(
    places: Places, tmp_path: Path, told: type[Told], loads: list[str]
) -> None:
    typed = [("big", "kl"), ("small", "kl"), ("big", "diff_mining")]
    shown: list[Done] = []
    together = perform_all([run(places, tmp_path / "one", *each) for each in typed], told, show=shown.append)
    assert loads == [str(places.base)]
    assert sum(what.startswith("Reading") for what in told.begun) == 2
    alone = [perform(config(places, tmp_path / "two", *each), Watch()) for each in typed]
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert len(results(tmp_path / "one")) > 3
    assert [one.words for one in together] == [run(places, tmp_path, *each)[1] for each in typed]
    assert [one.folder.relative_to(tmp_path / "one") for one in together] == [
        one.folder.relative_to(tmp_path / "two") for one in alone
    ]
    assert [list(one.findings.findings) for one in shown if one.findings] == [["kl"], ["diff_mining"], ["kl"]]
    for one, other in zip(together, alone, strict=True):
        assert other.findings is not None
        assert (one.change, one.safety, one.code) == (other.findings.change, other.findings.safety, 0)
        assert _report(one.folder) == _report(other.folder)
        assert at_hand(spec_for(one.config), one.folder).change == one.change
    assert told.lines[0].startswith("[1 to 2 of 3, in one pass] organism=big diffing/method=kl; organism=big")
    pace = [line for line in told.lines if " runs done" in line]
    assert len(pace) == 1
    assert pace[0].startswith("2 of 3 runs done, ")
    assert pace[0].endswith(" left")


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["methods"]


def test_a_run_that_fails_is_told_at_the_end_and_the_others_stand(
    places: Places, tmp_path: Path, told: type[Told]
) -> None:
    found = perform_all([run(places, tmp_path, "gone", "kl"), run(places, tmp_path, "small", "kl")], told)
    assert [(one.code, one.change) for one in found] == [(2, None), (0, "undecided")]
    assert found[0].problem is not None
    assert "gone" in found[0].problem
    assert told.lines[-1] == f"Failed: organism=gone diffing/method=kl: {found[0].problem}"
    assert (found[1].folder / "report.html").is_file()
    assert worst_code(found) == 2


def test_a_method_that_cannot_run_does_not_take_those_of_its_pass_with_it(
    places: Places, tmp_path: Path, told: type[Told]
) -> None:
    typed = [run(places, tmp_path, "big", "kl"), run(places, tmp_path, "big", "safety_attribution")]
    found = perform_all(typed, told)
    assert [one.code for one in found] == [0, 2]
    assert found[1].problem is not None
    assert "calibration" in found[1].problem


def test_a_sweep_that_is_stopped_goes_on_where_it_was(
    places: Places, tmp_path: Path, told: type[Told]
) -> None:
    typed = [run(places, tmp_path, "big", "kl"), run(places, tmp_path, "small", "kl")]

    def stop(done: Done) -> None:
        if done.config.organism.name == "big":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform_all(typed, told, show=stop)
    assert told.lines[-1].startswith("Stopped: 1 of 2 runs are done. The same command goes on from there")
    before = results(tmp_path)
    told.begun.clear()
    perform_all(typed, told)
    assert sum(what.startswith("Reading") for what in told.begun) == 1
    assert before.items() <= results(tmp_path).items()


@pytest.mark.parametrize(
    ("codes", "worst"), [((), 0), ((0, 0), 0), ((0, 4), 4), ((4, 3, 0), 3), ((3, 2, 4), 2), ((2, 1), 1)]
)
def test_the_worst_code_is_the_sweeps(
    places: Places, tmp_path: Path, codes: Sequence[int], worst: int
) -> None:
    one = Ran(config(places, tmp_path, "big", "kl"), (), tmp_path, None, None, 0, None, 0.0)
    assert worst_code(replace(one, code=code) for code in codes) == worst


def numbers(configs: Sequence[RunConfig]) -> list[list[int]]:
    jobs = [Job(number, config, ()) for number, config in enumerate(configs)]
    return [[job.number for job in unit] for unit in order(jobs)]


def test_runs_of_one_base_then_of_one_pair_come_together(places: Places, tmp_path: Path) -> None:
    def on(model: str, organism: str, **changes: Any) -> RunConfig:
        return replace(
            config(places, tmp_path, organism, "kl", **changes), model=ModelEntry(model, str(places.base))
        )

    mixed = [
        on("a", "big"),
        on("b", "big"),
        on("a", "small"),
        on("a", "big", seed=3),
        on("b", "small"),
        on("a", "small", seed=3),
    ]
    assert numbers(mixed) == [[0], [3], [2], [5], [1], [4]]


def test_only_runs_that_differ_in_their_methods_alone_share_a_pass(places: Places, tmp_path: Path) -> None:
    def of(method: str, **changes: Any) -> RunConfig:
        return config(places, tmp_path, "big", method, **changes)

    assert numbers([of("kl"), of("diff_mining"), of("kl")]) == [[0, 1, 2]]
    assert numbers([of("kl"), of("kl", options={"passages": 3}), of("diff_mining")]) == [[0, 2], [1]]
    for other in ({"seed": 1}, {"system": "Be kind."}, {"nulls": ("train",)}, {"rules": ("kl_mean>1",)}):
        assert numbers([of("kl"), of("diff_mining", **other)]) == [[0], [1]]
    read = [replace(of(name), pipeline=Pipeline("evaluation")) for name in ("kl", "diff_mining")]
    assert numbers(read) == [[0], [1]]


# Over a cluster, with workers that are only functions.

Map = Callable[..., Iterator[tuple[int, Any]]]


def in_other_processes(
    function: Any, items: Sequence[Any], workers: Any, tell: Any
) -> Iterator[tuple[int, Any]]:
    """What a cluster does with work: it travels as bytes, and comes back in any order."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="comes with ray, which is optional")
    there = pickle.loads(cloudpickle.dumps(function))
    for index in reversed(range(len(items))):
        yield index, pickle.loads(cloudpickle.dumps(there(pickle.loads(cloudpickle.dumps(items[index])))))


def on_ray(runs: Sequence[Run]) -> list[Run]:
    return [
        (replace(config, infrastructure=replace(config.infrastructure, kind="ray")), words)
        for config, words in runs
    ]


def test_over_a_cluster_a_sweep_makes_the_same(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    monkeypatch.setattr(ray_pool, "map_jobs", in_other_processes)
    typed = [run(places, tmp_path / "out", name, "kl") for name in ("big", "gone", "small")]
    found = perform_all(on_ray(typed))
    assert [one.code for one in found] == [0, 2, 0]
    assert loads == [str(places.base)]
    assert [one.folder for one in found[::2]] == [
        tmp_path / "out" / "reports" / "tiny" / name / "default" / "kl" for name in ("big", "small")
    ]
    assert all((one.folder / "report.html").is_file() for one in found[::2])
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == []


def test_a_worker_that_does_not_see_the_results_says_so(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "map_jobs", in_other_processes)
    monkeypatch.setattr(sweep, "write_text", lambda path, text: None)
    found = perform_all(on_ray([run(places, tmp_path, name, "kl") for name in ("big", "small")]))
    assert [one.code for one in found] == [2, 2]
    assert "name one on a disk that all nodes share" in str(found[0].problem)


def test_a_job_whose_worker_died_is_a_failure_and_a_bug_is_raised(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = on_ray([run(places, tmp_path, name, "kl") for name in ("big", "small")])

    def lost(error: Exception) -> Map:
        return lambda function, items, workers, tell: iter([(0, error), (1, ModelError("gone too"))])

    monkeypatch.setattr(ray_pool, "map_jobs", lost(ModelError("lost its worker")))
    assert [one.problem for one in perform_all(typed)] == ["lost its worker", "gone too"]
    monkeypatch.setattr(ray_pool, "map_jobs", lost(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        perform_all(typed)


def test_one_pass_alone_spreads_its_shards_instead(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, Any]] = []

    def note(config: RunConfig, watch: Watch, command: str, **options: Any) -> Done:
        seen.append({"kind": config.infrastructure.kind})
        return Done(config, tmp_path, None)

    monkeypatch.setattr(units, "perform", note)
    perform_all(on_ray([run(places, tmp_path, "big", "kl")]))
    assert seen == [{"kind": "ray"}]


# What the command line ends with.


def test_the_table_has_a_line_a_run_and_takes_nothing_for_markup(places: Places, tmp_path: Path) -> None:
    from rich.console import Console

    from finetrace.cli.sweep import table

    one = Ran(
        config(places, tmp_path, "big", "kl"), (), Path("a"), "within-nulls", "not-measured", 0, None, 2.5
    )
    other = replace(
        one,
        config=replace(one.config, organism=OrganismEntry("[red]small")),
        change=None,
        code=2,
        problem="There is no folder gone.",
    )

    def drawn(ran: Sequence[Ran], width: int = 120) -> list[list[str]]:
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table(ran))
        return [line.split() for line in console.export_text().splitlines() if line.strip()]

    head, _, *lines = drawn([one, other])
    assert head == ["organism", "variant", "method", "change", "safety", "seconds"]
    assert lines[0] == ["big", "default", "kl", "within-nulls", "not-measured", "2.5"]
    assert lines[1] == ["[red]small", "default", "kl", "failed", "-", "2.5"]
    two = replace(one, config=replace(one.config, model=ModelEntry("second", str(places.base))))
    assert drawn([one, two])[0][:3] == ["organism", "variant", "model"]
    narrow = [cell for line in drawn([one, other], 50) for cell in line]
    assert {"within-nulls", "not-measured", "failed"} <= set(narrow), (
        "verdicts are whole on a narrow terminal"
    )
