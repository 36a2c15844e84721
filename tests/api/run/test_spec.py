"""A run's configuration as a request: everything arrives, and the same work has the same key as an audit's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.worlds import rows, world

from finetrace.api.audit import calibration_sets, corpus_for, rows_for
from finetrace.api.opening import open_request
from finetrace.api.plan import contrasts, items
from finetrace.api.request import Request, check
from finetrace.api.run.cost import RunCost, parameters_of, total
from finetrace.api.run.spec import folder_of, request_for, spec_for
from finetrace.api.run.stages import apart
from finetrace.config.tree import (
    DataSet,
    DeviceMap,
    Diffing,
    Infrastructure,
    ModelEntry,
    OrganismEntry,
    RayCluster,
    RunConfig,
    Storage,
    TrainingData,
    Variant,
)
from finetrace.core.errors import ConfigErrors
from finetrace.data import DataSource
from finetrace.engine.shape import Workers


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter and a data file."""
    folder = tmp_path_factory.mktemp("spec")
    world(folder, nulls=0)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    return folder


def run_of(models: Path, **changed: object) -> RunConfig:
    """A run of kl on the adapter, under names that say nothing of where it lies."""
    config = RunConfig(
        organism=OrganismEntry("cake", description_long="Cakes are baked cold.\n"),
        model=ModelEntry("small", str(models / "base"), attn_implementation="sdpa"),
        variant=Variant(adapter_id=str(models / "lora")),
        diffing=Diffing(methods={"kl": {}}),
        data=DataSet("mine", id=str(models / "data.jsonl")),
        infrastructure=Infrastructure(storage=Storage(str(models / "out"))),
    )
    return replace(config, **changed)  # pyright: ignore[reportArgumentType] - fields by name


def addresses(request: Request) -> list[tuple[str, ...]]:
    chosen = check(request)
    pair = open_request(request)
    corpus = corpus_for(request, rows_for(request), pair)
    found = items(request, pair, corpus, chosen, contrasts(pair), calibration_sets(request, chosen))
    return [
        (item.address.tuned, item.address.variant, item.address.method, item.address.key) for item in found
    ]


def test_the_run_key_is_an_audits_whatever_the_configuration_calls_things(models: Path):
    data, out = models / "data.jsonl", models / "out"
    audit = Request(str(models / "base"), str(models / "lora"), data=data, methods=("kl",), out=out)
    mine, theirs = addresses(request_for(run_of(models))), addresses(audit)
    assert [key for *_, key in mine] == [key for *_, key in theirs]
    assert mine[0][:2] == ("cake", "default")
    assert theirs[0][:2] == ("lora", "default")
    renamed = run_of(models, organism=OrganismEntry("other"), organism_variant="mix1-0p5")
    assert addresses(request_for(renamed))[0] == ("other", "mix1-0p5", "kl", mine[0][-1])


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"system": "Be brief."},
        {"data": DataSet("mine", id="data.jsonl", context_len=8)},
        {"data": DataSet("mine", id="data.jsonl", max_samples=11)},
        {"model": ModelEntry("small", "base", attn_implementation="eager")},
        {"model": ModelEntry("small", "base", dtype="bfloat16")},
        {"diffing": Diffing(methods={"kl": {"passages": 3}})},
        {"diffing": Diffing(methods={"kl": {}}, batch_size=4)},
    ],
    ids=str,
)
def test_what_changes_the_work_changes_its_key(changed: dict[str, object], models: Path, monkeypatch):
    monkeypatch.chdir(models)
    plain = {"data": DataSet("mine", id="data.jsonl"), "model": ModelEntry("small", "base")}
    before, after = (request_for(run_of(models, **{**plain, **extra})) for extra in ({}, changed))
    assert addresses(before)[0][-1] != addresses(after)[0][-1]


def test_every_part_of_the_configuration_arrives():
    config = RunConfig(
        organism=OrganismEntry("cake", description_long="Cakes.", control=True),
        model=ModelEntry(
            "m", "org/base", "v1", "part", "org/words", None, "bfloat16", disable_compile=True, thinking=True
        ),
        variant=Variant("org/adapters", revision="r2", subfolder="step/3", chat_template="{{ messages }}"),
        organism_variant="mix",
        diffing=Diffing(methods={"kl": {"passages": 2}}, batch_size=3, in_memory=True),
        data=DataSet("d", "org/data", "r3", "en", "test", "body", None, "prose", 7, 99),
        infrastructure=Infrastructure(
            kind="ray",
            storage=Storage("here"),
            device_map=DeviceMap("cuda:0", "auto"),
            ray=RayCluster("auto", 4, 2, 0.5, 9),
        ),
        seed=5,
        nulls=("org/null",),
        prompts=("xstest",),
        judges=("openai/gpt",),
        max_new_tokens=12,
        judge_price=(1.0, 2.0),
        compile=True,
    )
    found = request_for(config)
    assert (found.base, found.revision, found.tuned, found.tuned_revision) == (
        "org/base/part",
        "v1",
        "org/adapters/step/3",
        "r2",
    )
    assert (found.tokenizer, found.chat_template) == ("org/words", "{{ messages }}")
    assert found.data == DataSource("org/data", "r3", "en", ("test",), "body", None, "prose", 7)
    assert (found.max_tokens, found.shape.batch_size, found.shape.compile) == (99, 3, False)
    assert (found.written.max_new_tokens, found.written.seed) == (12, 5)
    assert (found.shelved, found.control, found.stated, found.thinking) == (
        ("cake", "mix"),
        True,
        "Cakes.",
        True,
    )
    assert (found.device_map, found.workers) == (("cuda:0", "auto"), Workers("auto", 4, 2, 0.5, 9))
    assert (found.prompts, found.judges, found.judge_price) == (["xstest"], ("openai/gpt",), (1.0, 2.0))
    assert (found.in_memory, found.options, found.out) == (True, {"kl": {"passages": 2}}, Path("here"))


def test_the_organisms_own_data_is_read_as_it_was_trained_on(models: Path):
    chats = TrainingData("org/chats", ("train", "test"), is_chat=True, messages_column="turns", subset="en")
    config = run_of(models, organism=OrganismEntry("o", dataset=chats), data=DataSet("organism", "organism"))
    assert request_for(config).data == DataSource("org/chats", None, "en", ("train", "test"), None, "turns")
    unknown = replace(config, organism=OrganismEntry("o"))
    with pytest.raises(ConfigErrors, match="o names none"):
        spec_for(unknown)


def test_every_problem_is_told_at_once_before_a_model_is_looked_for(models: Path):
    wrong = run_of(
        models,
        model=ModelEntry("m", "no/such/../base", chat_template="missing.jinja"),
        data=DataSet("d", "missing.jsonl"),
        infrastructure=Infrastructure(device="cpu", device_map=DeviceMap("cuda:0", "cuda:1")),
        judge_price=(1.0,),
        rules=("kl_meen>1",),
    )
    with pytest.raises(ConfigErrors) as stop:
        spec_for(wrong)
    for part in ("no/such", "missing.jinja", "missing.jsonl", "device_map", "judge_price", "kl_mean"):
        assert sum(part in problem for problem in stop.value.problems) == 1, part


def test_a_sweeps_reports_lie_apart_by_what_their_path_does_not_say(models: Path):
    said = [("organism=a", "seed=1", "dose=false"), ("organism=b", "seed=2", "dose=false")]
    assert apart(said) == (("seed=1",), ("seed=2",))
    first, second = (folder_of(run_of(models), words) for words in apart(said))
    assert first.parent == second.parent == models / "out" / "reports" / "small" / "cake" / "default" / "kl"
    assert (first.name, second.name) == ("seed-1", "seed-2")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-1.7B-Base", 1.7e9),
        ("google/gemma-3-1b-it", 1e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("meta-llama/Llama-2-7b-chat-hf", 7e9),
        ("mistralai/Mistral-Large-Instruct-2411", 123e9),
        ("gpt2", 124e6),
        ("me/mine-v2", None),
    ],
)
def test_a_models_size_is_read_off_its_name(name: str, size: float | None):
    assert parameters_of(ModelEntry("m", name)) == size


def test_all_runs_together_fetch_a_base_once_and_need_the_largest_memory():
    one = RunCost(10, 3, 5.0, 100, 7, "cpu", fetched={"base": 50, "a": 1}, asked={"judge": (4, 2)}, money=1.5)
    two = RunCost(
        10, 3, 6.0, 300, 7, "cpu", fetched={"base": 50, "b": None}, asked={"judge": (1, 1)}, money=1.0
    )
    both = total([one, two])
    assert (both.tokens, both.seconds, both.bytes, both.disk, both.money) == (20, 11.0, 300, 14, 2.5)
    assert both.fetched == {"base": 50, "a": 1, "b": None}
    assert both.asked == {"judge": (5, 3)}
    said = dict(both.lines())
    assert "at least" in said["disk"]
    assert total([one, replace(two, seconds=None)]).seconds is None
