"""One key for the same work from every door; another for all that moves a number."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.hub import Hub, fake_hub
from tests.tiny import save_base, save_lora, tiny_tokenizer
from tests.worlds import rows

import finetrace as ft
from finetrace.api.audit import make_ready, run_keys
from finetrace.api.request import Request, check
from finetrace.api.run.spec import spec_for
from finetrace.api.watch import Watch
from finetrace.cli import main
from finetrace.config import compose_run
from finetrace.core.errors import ModelError
from finetrace.engine.shape import Shape
from finetrace.models import keep

TEMPLATE = "{% for message in messages %}{{ message['role'] }} w1 {{ message['content'] }} {% endfor %}"
ADAPTER = "org/adapters/first/final"
Words = Sequence[str]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class World:
    """A hub with a base and adapters, texts, and a folder of configurations that know them. commits: of base, adapters."""

    hub: Hub
    folder: Path
    commits: dict[str, str]

    @property
    def configs(self) -> Path:
        return self.folder / "configs"

    def data(self, name: str = "texts") -> str:
        return str(self.folder / f"{name}.jsonl")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        hub = fake_hub(folder, patch)
        base = save_base(folder, tokenizer=tiny_tokenizer(template=TEMPLATE))
        one, two = (save_lora(folder, base, seed=seed, name=f"lora{seed}") for seed in (1, 2))
        commits = {"base": hub.add("org/base", base), "adapter": ""}
        hub.add("org/base", save_base(folder, name="again", seed=5), revision="retrained")
        hub.add("org/adapters", one, subfolder="first/final")
        commits["adapter"] = hub.add("org/adapters", two, subfolder="second/final")
        hub.add("org/adapters", two, subfolder="first/final", revision="longer")
        hub.add("org/copy", one)
        tiny_tokenizer(template=TEMPLATE, words=("w2", "w1")).save_pretrained(str(folder / "tokens"))
        (folder / "template.jinja").write_text(TEMPLATE.replace("w1", "w3"), encoding="utf-8")
        _write_rows(folder)
        _write_configs(folder / "configs")
        yield World(hub, folder, commits)


def _write_rows(folder: Path) -> None:
    texts = rows(6)
    changed = [*texts[:-1], {**texts[-1], "text": texts[-1]["text"] + " w7"}]
    for name, found in {"texts": texts, "changed": changed}.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _write_configs(folder: Path) -> None:
    variants = {
        "default": {"adapter_id": ADAPTER},
        "second": {"adapter_id": "org/adapters/second/final"},
        "longer": {"adapter_id": ADAPTER, "revision": "longer"},
        "copy": {"adapter_id": "org/copy"},
        "apart": {"adapter_id": "org/adapters", "subfolder": "first/final"},
    }
    files = {
        "model/tiny.yaml": {"name": "tiny", "model_id": "org/base", "has_enable_thinking": True},
        "organism/mine.yaml": {"name": "mine", "finetuned_models": {"tiny": variants}},
        "organism/other.yaml": {
            "name": "other",
            "finetuned_models": {"tiny": {"default": {"adapter_id": ADAPTER}}},
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def words_of(world: World, *words: str) -> list[str]:
    return ["organism=mine", "model=tiny", "diffing/method=kl", f"data.id={world.data()}", *words]


def by_words(world: World, *words: str) -> dict[str, str]:
    """Method -> run key, of `finetrace run`."""
    spec = spec_for(compose_run(words_of(world, *words), world.configs))
    return run_keys(make_ready(spec.request, spec.chosen, Watch()))


def by_request(world: World, **options: Any) -> dict[str, str]:
    """Method -> run key, of an audit."""
    given: dict[str, Any] = {"base": "org/base", "tuned": ADAPTER, "data": world.data(), "methods": ("kl",)}
    request = Request(**(given | options))
    return run_keys(make_ready(request, check(request), Watch()))


def ways(world: World) -> dict[str, tuple[Words, Options]]:
    """Everything that moves a number: as words of a run, and as options of an audit."""
    file, template = str(world.folder / "tokens"), world.folder / "template.jinja"
    return {
        "nothing": ([], {}),
        "subfolder": (["organism_variant=second"], {"tuned": "org/adapters/second/final"}),
        "revision": (["model.revision=retrained"], {"revision": "retrained"}),
        "template": (
            [f"model.chat_template={template}"],
            {"chat_template": template.read_text(encoding="utf-8")},
        ),
        "dtype": (["model.dtype=bfloat16"], {"dtype": "bfloat16"}),
        "context": (["data.context_len=8"], {"max_tokens": 8}),
        "row": ([f"data.id={world.data('changed')}"], {"data": world.data("changed")}),
        "seed": (["seed=3"], {"seed": 3}),
        "system": (["system='w9 w9'"], {"system": "w9 w9"}),
        "batch": (["diffing.batch_size=4"], {"shape": Shape(batch_size=4)}),
        "attention": (["model.attn_implementation=eager"], {"attn_implementation": "eager"}),
        "tokenizer": ([f"model.tokenizer_id={file}"], {"tokenizer": file}),
        "thinking": (["model.thinking=true"], {"thinking": True}),
        "option": (["diffing.method.passages=3"], {"options": {"kl": {"passages": 3}}}),
    }


def test_each_thing_that_moves_a_number_has_a_key_of_its_own_from_both_doors(world: World) -> None:
    with keep.keep_bases():
        run = {name: by_words(world, *words)["kl"] for name, (words, _) in ways(world).items()}
        audit = {name: by_request(world, **options)["kl"] for name, (_, options) in ways(world).items()}
        later = by_words(world, "organism_variant=longer")["kl"]
        assert later == by_request(world, tuned_revision="longer")["kl"]
    assert run == audit
    assert len({*run.values()}) == len(run)
    # The second subfolder on main and the first one on the later branch hold the same adapter: the same work.
    assert later == run["subfolder"]


SAME: dict[str, Words] = {
    "another organism": ["organism=other"],
    "the same adapter elsewhere": ["organism_variant=copy"],
    "repository and subfolder apart": ["organism_variant=apart"],
    "no dose": ["dose=false"],
    "in memory": ["diffing.in_memory=true"],
    "on a cluster": ["infrastructure.kind=ray"],
    "another folder": ["out=elsewhere"],
    "with other methods": ["diffing/method=[token_depth,kl]"],
    "the default said": ["seed=0", "model.dtype=auto", "diffing.batch_size=16"],
}


def test_what_moves_no_number_is_in_no_key(world: World) -> None:
    with keep.keep_bases():
        wanted = by_words(world)["kl"]
        found = {name: by_words(world, *words)["kl"] for name, words in SAME.items()}
    assert found == dict.fromkeys(SAME, wanted)


def test_quantised_weights_are_refused_at_both_doors(world: World) -> None:
    """Their key holds how; until they can be loaded, nobody gets one."""
    with pytest.raises(ModelError, match="Quantised") as run:
        by_words(world, "model.quantization=nf4")
    with pytest.raises(ModelError) as audit:
        by_request(world, quantization="nf4")
    assert str(run.value) == str(audit.value)


def test_a_null_beside_the_pair_leaves_its_key(world: World) -> None:
    nulls = ("org/adapters/second/final",)
    assert by_request(world, nulls=nulls) == by_request(world)


def test_what_is_asked_has_one_key_from_both_doors_too(world: World) -> None:
    methods = ["behaviour", "weight_spectrum"]
    prompts = world.folder / "asks.jsonl"
    prompts.write_text('{"prompt": "w3 w4", "expect": "answer"}\n', encoding="utf-8")
    said = [f"diffing/method=[{','.join(methods)}]", f"prompts=[{prompts}]"]
    given = {"methods": tuple(methods), "prompts": str(prompts)}
    with keep.keep_bases():
        plain = by_words(world, *said)
        assert plain == by_request(world, **given)
        short = by_words(world, *said, "max_new_tokens=3")
    assert short["behaviour"] != plain["behaviour"]
    assert short["weight_spectrum"] == plain["weight_spectrum"]


def shelf(out: Path) -> dict[str, Path]:
    """Run key -> folder, of the results on the pair."""
    found = [path.parent for path in (out / "runs").glob("*/*/*/kl/*/manifest.json")]
    return {path.name: path for path in found if _manifest(path)["contrast"] == "pair"}


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def shell(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["finetrace", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_every_door_puts_the_same_result_under_the_same_key(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = {name: tmp_path / name for name in ("audit", "python", "run", "multirun")}
    said = words_of(world, "pipeline.mode=diffing")
    dirs = ["--config-dir", world.configs]
    data = ["--data", world.data(), "--methods", "kl", "--out", outs["audit"]]
    assert shell(monkeypatch, "audit", "org/base", ADAPTER, *data) == 0
    ft.audit("org/base", ADAPTER, data=world.data(), methods=["kl"], out=outs["python"])
    assert shell(monkeypatch, "run", *said, f"out={outs['run']}", *dirs) == 0
    assert shell(monkeypatch, "run", "-m", *said, f"out={outs['multirun']}", "seed=0,3", *dirs) == 0
    shelves = {name: shelf(out) for name, out in outs.items()}
    (key,) = shelves["audit"]
    assert key == by_request(world)["kl"]
    assert list(shelves["python"]) == list(shelves["run"]) == [key]
    assert set(shelves["multirun"]) == {key, by_request(world, seed=3)["kl"]}
    bodies = {name: (found[key] / "result.json").read_bytes() for name, found in shelves.items()}
    assert len({*bodies.values()}) == 1
    for found in shelves.values():
        assert _manifest(found[key])["revisions"] == {
            "base": world.commits["base"],
            "tuned": world.commits["adapter"],
        }
