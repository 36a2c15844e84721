"""The contract of every method that is found: nothing here names one."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worlds import rows, world

import finetrace as ft
from finetrace.api.found import Found
from finetrace.api.plan import subject
from finetrace.api.request import Request, check, choose
from finetrace.core.card import discover
from finetrace.core.page import Number, Page, Passage, Table
from finetrace.core.result import decode, encode
from finetrace.data import build_corpus, read_rows, shards
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.engine import Contrast, Job
from finetrace.engine.run import run_shard
from finetrace.models import Pair, open_pair

METHODS = sorted(discover()[0])
OBSERVING = [name for name in METHODS if discover()[0][name].observes]
RUNNING = [name for name in METHODS if discover()[0][name].runs]
# Those whose chief number a change verdict is about.
CHIEF = [name for name in OBSERVING if discover()[0][name].primary is not None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base, tuned, _ = world(tmp_path_factory.mktemp("pair"), nulls=0)
    return open_pair(base, tuned)


def parts(name: str, pair: Pair, shard_tokens: int, side: str = "tuned") -> list[Any]:
    """One observer a shard, after the whole shard."""
    chosen = choose(name, {})
    corpus = build_corpus(read_rows(rows(24)), pair.tokenizer)
    known = subject(Request("b", "t"), pair, corpus)
    needs = chosen.card.needs(chosen.config)

    def fresh() -> Any:
        return chosen.card.part("observe").observer(chosen.config, known)

    job = Job(name, Contrast("any", side), needs, fresh, journal=Path("unused"))
    return [run_shard(pair, corpus, shard, [job], 4)[0] for shard in shards(corpus, shard_tokens)] + [fresh()]


def folded(observers: list[Any]) -> Any:
    """The left fold, as the pass does it: a fresh observer first (the last of `parts`)."""
    *seen, total = observers
    for part in seen:
        total.merge(part)
    return total


def same_bits(one: Any, other: Any) -> bool:
    a, b = encode(one), encode(other)
    return a.body == b.body and all(a.arrays[k].tobytes() == b.arrays[k].tobytes() for k in a.arrays)


@pytest.mark.parametrize("name", METHODS)
def test_card(name: str):
    card = discover()[0][name]
    assert card.name == name
    assert card.summary
    assert dataclasses.is_dataclass(card.config)
    card.config()  # every option has a default
    assert card.observes or card.runs, "one of observe.py and run.py, or both"
    for part in ("result", "describe", *(door for door in ("observe", "run") if card.has(door))):
        card.part(part)
    readme = Path(card.part("result").__file__ or "").parent / "README.md"
    text = readme.read_text()
    for key in (card.primary, *(measure.key for measure in card.measures)):
        assert key is None or key in text, f"the README lists the number {key}"
    assert "When not to trust" in text
    for field in dataclasses.fields(card.config):
        assert f"`{field.name}`" in text, f"the README names the option {field.name}"


@pytest.mark.parametrize("name", METHODS)
def test_a_card_is_light(name: str):
    code = f"import sys; import finetrace.methods.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "transformers", "plotly", "scipy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", OBSERVING)
def test_state_and_restore_are_the_identity(name: str, pair: Pair):
    seen, fresh = parts(name, pair, 10**6)[0], parts(name, pair, 10**6)[-1]
    state = {key: tensor.clone() for key, tensor in seen.state().items()}
    fresh.restore(state)
    again = fresh.state()
    assert state.keys() == again.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor.nan_to_num(-1.0), again[key].nan_to_num(-1.0)), key
    assert same_bits(seen.result(), fresh.result())


@pytest.mark.parametrize("name", OBSERVING)
def test_merging_shards_equals_one_shard(name: str, pair: Pair):
    """To rounding: batches differ, so the last bits may."""
    whole = folded(parts(name, pair, 10**6)).result()
    cut = folded(parts(name, pair, 60)).result()
    for where, keys in whole.slices.items():
        for key, estimate in keys.items():
            other = cut.slices[where][key]
            assert (other.n, other.clusters) == (estimate.n, estimate.clusters)
            assert (other.value is None) == (estimate.value is None)
            if estimate.value is not None:
                assert other.value == pytest.approx(estimate.value, rel=1e-5, abs=1e-7), (where, key)


@pytest.mark.parametrize("name", OBSERVING)
def test_an_observer_that_saw_nothing_has_no_numbers(name: str, pair: Pair):
    result = parts(name, pair, 10**6)[-1].result()
    for estimate in result.numbers.values():
        assert estimate.value is None, "no data is never 0"
        assert estimate.n == 0
    discover()[0][name].part("describe").describe(result)


@pytest.mark.parametrize("name", CHIEF)
def test_base_against_itself_gives_zero(name: str, pair: Pair):
    result = folded(parts(name, pair, 10**6, side="base")).result()
    assert result.numbers[discover()[0][name].primary].value == 0


@pytest.mark.parametrize("name", OBSERVING)
def test_result_and_page(name: str, pair: Pair):
    holds(name, folded(parts(name, pair, 10**6)).result())


def holds(name: str, result: Any) -> None:
    """What every Result and its Page keep to."""
    card = discover()[0][name]
    assert same_bits(result, decode(type(result), encode(result)))
    wanted = {key for key in (card.primary, *(measure.key for measure in card.measures)) if key is not None}
    assert wanted <= result.numbers.keys()
    for estimate in [*result.numbers.values(), *(e for s in result.slices.values() for e in s.values())]:
        assert estimate.unit
        assert estimate.value is None or estimate.n > 0
    page = card.part("describe").describe(result)
    assert isinstance(page, Page)
    assert {block.key for block in page.blocks if isinstance(block, Number)} >= wanted
    for block in page.blocks:
        if isinstance(block, Table):
            assert all(len(row) == len(block.columns) for row in block.rows)
        if isinstance(block, Passage):
            assert len(block.tokens) == len(block.values)


def chats(n: int, *, seed: int) -> list[dict[str, Any]]:
    """Conversations for a calibration set."""
    return [row for row in rows(3 * n, seed=seed) if "messages" in row]


def sae(folder: Path) -> Path:
    """Random directions of a tiny model's width, for a method that cannot do without a pretrained SAE."""
    rows = torch.nn.functional.normalize(
        torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0)), dim=2
    )
    path, nothing = folder / "sae.safetensors", torch.zeros(1, 32)
    Dictionary(
        encoder=rows.transpose(1, 2).contiguous(), encoder_bias=torch.zeros(40), decoder=rows, decoder_bias=nothing,
        mean=nothing.clone(), scale=torch.ones(1), owner=torch.zeros(40, dtype=torch.int8), threshold=0.5,
        kind="batch_topk",
    ).save(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Found]:
    """An audit by one method that runs on its own, with three nulls; each made once a folder."""
    base, tuned, nulls = world(tmp_path_factory.mktemp("ran"), nulls=3)

    @cache
    def audit(name: str, out: str) -> Found:
        card = discover()[0][name]
        asked = {field.name for field in dataclasses.fields(card.config)}
        options = {"sae": str(sae(base.parent)), "layer": 1} if "sae" in asked else {}
        needs = choose(name, options).needs
        sets = {
            one: chats(8, seed=number) for number, one in enumerate((*needs.calibration, *needs.optional))
        }
        return ft.audit(
            str(base), str(tuned), data=rows(12), methods=[name], nulls=[str(null) for null in nulls],
            out=tmp_path_factory.mktemp(out), dose=False, calibration=sets, options={name: options},
        )  # fmt: skip

    return audit


@pytest.mark.parametrize("name", RUNNING)
def test_what_runs_on_its_own(name: str, ran: Callable[[str, str], Found]):
    found = ran(name, "one")
    results = found.results[name]
    assert {"pair", "null:null_0", "null:null_1", "null:null_2"} <= results.keys()
    for result in results.values():
        holds(name, result)
    if discover()[0][name].primary is not None:
        assert found[name].verdicts, "there is a slice with a verdict"
    assert all(verdict.k == 3 for verdict in found[name].verdicts.values())


@pytest.mark.parametrize("name", RUNNING)
def test_the_same_run_gives_the_same_bits(name: str, ran: Callable[[str, str], Found]):
    one, other = ran(name, "one").results[name], ran(name, "other").results[name]
    assert all(same_bits(one[label], other[label]) for label in one)


def test_a_new_method_is_one_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What CONTRIBUTING says: copy a folder, rename it, and every door finds it."""
    import finetrace.methods as home

    source, copy = Path(home.__file__ or "").parent / "kl", tmp_path / "methods" / "moved"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob("*.py"):
        text = path.read_text().replace("finetrace.methods.kl", "finetrace.methods.moved")
        path.write_text(text.replace('name="kl"', 'name="moved"'))
    monkeypatch.setattr(home, "__path__", [*home.__path__, str(tmp_path / "methods")])
    try:
        assert list(discover()[0]) == sorted([*METHODS, "moved"])
        base, tuned, _ = world(tmp_path, nulls=0)
        found = ft.audit(str(base), str(tuned), data=rows(12), methods=["kl", "moved"], out=tmp_path / "out")
        assert found["moved"].numbers["kl_mean"].value == found["kl"].numbers["kl_mean"].value
        assert "moved" in (tmp_path / "out" / "report.html").read_text()
        check(Request(str(base), str(tuned), methods=("moved",)))
    finally:
        for module in [m for m in sys.modules if m.startswith("finetrace.methods.moved")]:
            del sys.modules[module]
