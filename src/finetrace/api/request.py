"""What was asked for, checked all at once before a model loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetrace.api.calibration import problems as calibration_problems
from finetrace.api.defaults import DECODING, METHODS, TINY_DECODING
from finetrace.api.judging import problems as judge_problems
from finetrace.api.names import check_source, is_bundled, null_sources
from finetrace.api.prompts import problems as prompt_problems
from finetrace.config.options import configure, parse_setting
from finetrace.core.card import Method, Needs, method
from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput, ConfigErrors, MissingExtra
from finetrace.core.shelf import Shelf
from finetrace.data.sources import DataSource
from finetrace.engine.shape import Shape, Workers
from finetrace.store.keeping import Keeping
from finetrace.store.keeping import problems as store_problems

BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# The word that stands for nulls to be made: `--null train`.
TRAIN = "train"
# Slices whose texts a report shows only on request: the user's own harmful prompts.
PRIVATE = ("restricted", "harmful")

Data = str | Path | DataSource | Iterable[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Request:
    """One audit. Sources are a folder, a hub id or a bundled name.

    quantization, revision, tuned_revision, attn_implementation, tokenizer, chat_template, trust_remote_code: as in
    `finetrace.models.open_pair`. system: a system prompt for every conversation. max_tokens: texts are cut to so many.
    reveal: show the texts of restricted slices. dose: also read each null at the pair's dose. options: method -> its
    configuration; settings: the same as texts, `method.option=value`. calibration: name of a supervised set ("safety",
    "utility", "placebo") -> its file or rows, for the methods that need it. truth: the bundled organism whose truth
    applies, where `tuned` was trained from its recipe. prompts: a file, a benchmark's id, several of them, or rows, for
    the methods that ask; None takes the bundled ones. arms: ways of putting them ("default", "none", "user", "own").
    decoding: how answers are written; None for the defaults, which are short on the bundled world. backend: what writes answers, of BACKENDS. judges: those that grade them, as in `finetrace.api.judging`; judge_labels: rows or a
    file of answers whose verdict is known, by which judges are measured; judge_price: of a million tokens read and written.
    served: Inspect's name of a model whose answers are compared with the pair's; trained_quantization: how the base was held
    while the adapter was trained. shelved: organism and variant, as the shelf is to call the pair; None goes by `tuned`.
    control: the fine-tune is built to change nothing, so that one without effect is no error. stated: what was planted, in
    words. device_map: where base and tuned are, a device or "auto" each; None as `device`. thinking: templates that can
    switch thinking are asked to switch it on. workers: who reads the shards; None is this process. in_memory: what a pass has
    finished is not kept on disk until it is whole, so that a killed run begins again. store: hidden states that are kept on
    disk; None keeps none.
    """

    base: str
    tuned: str | None
    data: Any = None
    out: Path = Path("finetrace-audit")
    methods: tuple[str, ...] = METHODS
    nulls: tuple[str, ...] = ()
    system: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    tuned_revision: str | None = None
    attn_implementation: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    max_tokens: int | None = None
    shape: Shape = field(default_factory=Shape)
    reveal: bool = False
    dose: bool = True
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    truth: str | None = None
    prompts: Any = None
    arms: tuple[str, ...] = ()
    decoding: Decoding | None = None
    judges: tuple[str, ...] = ()
    backend: str = "transformers"
    judge_labels: Any = None
    judge_price: tuple[float, float] | None = None
    served: str | None = None
    trained_quantization: str | None = None
    shelved: tuple[str, str] | None = None
    control: bool = False
    stated: str | None = None
    device_map: tuple[str | None, str | None] = (None, None)
    thinking: bool = False
    workers: Workers | None = None
    in_memory: bool = False
    store: Keeping | None = None

    @property
    def written(self) -> Decoding:
        """How answers are written."""
        usual = TINY_DECODING if is_bundled(self.base) else DECODING
        return self.decoding or replace(usual, seed=self.seed)

    @property
    def shelf(self) -> Shelf:
        """Where results are kept; behind it the folder that FINETRACE_SHELF names, which several audits may share."""
        shared = os.environ.get("FINETRACE_SHELF")
        return Shelf(self.out / "runs", Path(shared) if shared else None)

    @property
    def trains_nulls(self) -> bool:
        return TRAIN in self.nulls


@dataclass(frozen=True)
class Chosen:
    """A method with the configuration it will run with."""

    card: Method
    config: Any

    @property
    def needs(self) -> Needs:
        return self.card.needs(self.config)


def check(request: Request, rules: Sequence[str] = ()) -> tuple[Chosen, ...]:
    """The methods to run. Every problem that can be seen without loading a model is raised at once (ConfigErrors)."""
    from finetrace.api.parity import problems as parity_problems
    from finetrace.api.rules import problems as rule_problems

    problems: list[str] = []

    def attempt(work: Any, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except BadInput as error:
            problems.append(str(error))
            return None

    parsed = [attempt(parse_setting, text, request.methods) for text in request.settings]
    settings = {
        name: {key: value for method, key, value in filter(None, parsed) if method == name}
        for name in request.methods
    }
    chosen = [
        attempt(choose, name, request.options.get(name, {}), settings[name])
        for name in dict.fromkeys(request.methods)
    ]
    wanted = {one.card.name: one.needs for one in chosen if one is not None}
    problems += calibration_problems(request.calibration, wanted, bundled=is_bundled(request.base))
    attempt(check_source, "base", request.base)
    if request.tuned is not None:
        attempt(check_source, "tuned", request.tuned)
    named = [source for source in request.nulls if source != TRAIN]
    for source in named:
        attempt(check_source, "null", source)
    attempt(null_sources, named)
    problems += rule_problems(rules, [one.card for one in chosen if one is not None])
    problems += prompt_problems(request)
    problems += judge_problems(request, list(wanted.values()))
    problems += parity_problems(request, list(wanted.values()))
    problems += store_problems(request.store, wanted)
    problems += _scalars(request)
    if problems:
        raise ConfigErrors(problems)
    return tuple(chosen)


def _scalars(request: Request) -> list[str]:
    problems = []
    if not request.methods:
        problems.append(f"No method was named: --methods {','.join(METHODS)} is the default.")
    if TRAIN in request.nulls and len(request.nulls) > 1:
        problems.append("--null train makes all nulls itself: leave out the others, or name only folders.")
    if TRAIN in request.nulls and not request.dose:
        problems.append("Nulls that are trained here have a size of our choosing: --null train needs --dose.")
    if request.dtype not in DTYPES:
        problems.append(f"dtype is '{request.dtype}'; it is one of {', '.join(DTYPES)}.")
    if request.backend not in BACKENDS:
        problems.append(f"backend is '{request.backend}'; it is one of {', '.join(BACKENDS)}.")
    elif request.backend == "vllm" and find_spec("vllm") is None:
        problems.append(str(MissingExtra("vLLM", "vllm")))
    if request.chat_template is not None and "{" not in request.chat_template:
        problems.append(f"'{request.chat_template}' is no chat template: give its text, not the file's name.")
    if request.max_tokens is not None and request.max_tokens < 2:
        problems.append(
            f"max tokens is {request.max_tokens}; at least 2 are needed, as a prediction needs a next token."
        )
    if request.shape.batch_size < 1:
        problems.append(f"batch size is {request.shape.batch_size}; it is at least 1.")
    data = request.data.id if isinstance(request.data, DataSource) else request.data
    if isinstance(data, str | Path) and _looks_local(data) and not Path(data).expanduser().exists():
        problems.append(f"The data file {data} does not exist.")
    if request.shape.compile and not _can_compile(request.device):
        problems.append(
            "--compile needs a C++ compiler on a CPU (g++ or clang++): install one, or leave it out."
        )
    if request.out.exists() and not request.out.is_dir():
        problems.append(f"--out {request.out} is a file; name a folder.")
    return problems


def _can_compile(device: str) -> bool:
    """A GPU's compiler comes with torch; a CPU's has to be there."""
    wanted = os.environ.get("CXX") or "g++"
    return device.startswith("cuda") or any(shutil.which(name) for name in (wanted, "clang++"))


def _looks_local(data: str | Path) -> bool:
    return Path(data).suffix in {".jsonl", ".json", ".parquet", ".txt"} or str(data).startswith(
        (".", "/", "~")
    )


def choose(name: str, options: Mapping[str, Any], settings: Mapping[str, str] | None = None) -> Chosen:
    """A method by name, with `options` and `settings` laid over its defaults; unknown keys and wrong types are named."""
    card = method(name)
    return Chosen(card, configure(card, options, settings))
