"""A run's configuration as a request: the same one that an audit of the same work makes, so that their run keys agree."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from finetrace.api.defaults import DECODING, TINY_DECODING
from finetrace.api.names import is_bundled
from finetrace.api.request import Chosen, Request, check
from finetrace.config.tree import AUTO, DataSet, Infrastructure, OrganismEntry, RunConfig
from finetrace.core.decoding import Decoding
from finetrace.core.errors import ConfigErrors
from finetrace.core.shelf import slug
from finetrace.data.sources import DataSource
from finetrace.engine.shape import Shape, Workers
from finetrace.store.keeping import Keeping

__all__ = ["ORGANISM", "Spec", "base_dir", "command_of", "folder_of", "request_for", "spec_for"]

ORGANISM = "organism"
"""The data set's id that stands for what the organism was trained on."""
_RAY = "ray"


@dataclass(frozen=True)
class Spec:
    """A run that was checked: what is asked for, and the methods with their options."""

    config: RunConfig
    request: Request
    chosen: tuple[Chosen, ...]


def spec_for(config: RunConfig) -> Spec:
    """The run, checked. Raises ConfigErrors with every problem that can be seen before a model loads."""
    problems = _problems(config)
    try:
        request = request_for(config)
        chosen = check(request, config.rules)
    except ConfigErrors as error:
        raise ConfigErrors(dict.fromkeys([*problems, *error.problems])) from None
    if problems:
        raise ConfigErrors(problems)
    return Spec(config, request, chosen)


def request_for(config: RunConfig) -> Request:
    """What the configuration asks for. Names of the configuration reach the shelf's paths, and no figure."""
    model, variant, where = config.model, config.variant, config.infrastructure
    base = f"{model.model_id}/{model.subfolder}" if model.subfolder else model.model_id
    return Request(
        base=base,
        tuned=variant.source,
        data=_data(config),
        out=base_dir(config),
        methods=tuple(config.diffing.methods),
        nulls=config.nulls,
        system=config.system,
        dtype=model.dtype,
        device=where.device,
        quantization=model.quantization,
        revision=model.revision,
        tuned_revision=variant.revision,
        attn_implementation=model.attn_implementation,
        tokenizer=variant.tokenizer_id or model.tokenizer_id,
        chat_template=_template(variant.chat_template or model.chat_template),
        trust_remote_code=model.trust_remote_code,
        seed=config.seed,
        max_tokens=_context(config),
        shape=Shape(
            batch_size=config.diffing.batch_size, compile=config.compile and not model.disable_compile
        ),
        reveal=config.reveal,
        dose=config.dose,
        options=config.diffing.methods,
        prompts=list(config.prompts) or None,
        decoding=_decoding(config, base),
        judges=config.judges,
        judge_price=(config.judge_price[0], config.judge_price[1]) if len(config.judge_price) == 2 else None,
        shelved=(config.organism.name, config.organism_variant),
        control=config.organism.control,
        stated=config.organism.description_long.strip() or None,
        device_map=(where.device_map.base, where.device_map.finetuned),
        thinking=model.thinking,
        workers=_workers(config),
        in_memory=config.diffing.in_memory,
        store=_store(config),
    )


def base_dir(config: RunConfig) -> Path:
    """Where results land: `runs` below it is the shelf."""
    return Path(config.diffing.results_base_dir or config.infrastructure.storage.base_dir).expanduser()


def _store(config: RunConfig) -> Keeping | None:
    asked = config.preprocessing
    if not asked.store:
        return None
    root = Path(asked.store_dir).expanduser() if asked.store_dir else base_dir(config) / "activations"
    layers = tuple(int(layer) if layer > 1 else layer for layer in asked.layers)
    return Keeping(root, layers, asked.store_dtype, asked.store_nulls)


def folder_of(config: RunConfig, apart: tuple[str, ...] = ()) -> Path:
    """The folder of the run's report. apart: words by which a sweep's runs differ beside what the path says anyway."""
    names = (config.model.name, config.organism.name, config.organism_variant)
    methods = "+".join(map(slug, config.diffing.methods))
    differs = (slug(word.replace("=", "-")) for word in apart)
    return base_dir(config).joinpath("reports", *map(slug, names), methods, *differs)


def command_of(config: RunConfig, mode: str) -> str:
    """The command that runs this configuration's organism and methods in another mode."""
    methods = ",".join(config.diffing.methods)
    words = [
        "finetrace",
        "run",
        f"organism={config.organism.name}",
        f"model={config.model.name}",
        f"organism_variant={config.organism_variant}",
        f"diffing/method={methods if len(config.diffing.methods) == 1 else f'[{methods}]'}",
        f"pipeline.mode={mode}",
    ]
    return shlex.join(words)


def _context(config: RunConfig) -> int | None:
    found = (config.data.context_len, config.preprocessing.context_len)
    return next((length for length in found if length is not None), None)


def _data(config: RunConfig) -> DataSource | str | None:
    """The texts: None for an audit's own, a name where they are read as an audit of that name reads them."""
    data = config.data
    limit = config.preprocessing.max_samples_per_dataset if data.max_samples is None else data.max_samples
    if data.id is None:
        return None
    if data.id == ORGANISM:
        return _of_organism(config.organism, data, limit)
    return DataSource(
        id=data.id,
        revision=data.revision,
        subset=data.subset,
        splits=(data.split,) if data.split else ("train",),
        text_column=data.text_column,
        messages_column=data.messages_column,
        slice=data.slice,
        max_samples=limit,
    )


def _of_organism(organism: OrganismEntry, data: DataSet, limit: int | None) -> DataSource | None:
    """What the organism was trained on; None where that is not known, which is a problem told elsewhere."""
    known = organism.dataset
    if known is None or known.id is None:
        return None
    return DataSource(
        id=known.id,
        revision=data.revision,
        subset=data.subset or known.subset,
        splits=(data.split,) if data.split else known.splits,
        text_column=data.text_column or (None if known.is_chat else known.text_column),
        messages_column=data.messages_column or (known.messages_column if known.is_chat else None),
        slice=data.slice,
        max_samples=limit,
    )


def _decoding(config: RunConfig, base: str) -> Decoding | None:
    if config.max_new_tokens is None:
        return None
    usual = TINY_DECODING if is_bundled(base) else DECODING
    return replace(usual, max_new_tokens=config.max_new_tokens, seed=config.seed)


def _template(given: str | None) -> str | None:
    """A template, or what the file of that name holds; None where there is none, which is a problem told elsewhere."""
    if given is None or "{" in given or "\n" in given:
        return given
    path = Path(given).expanduser()
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _workers(config: RunConfig) -> Workers | None:
    if config.infrastructure.kind != _RAY:
        return None
    ray = config.infrastructure.ray
    return Workers(ray.address, ray.workers, ray.cpus, ray.gpus, ray.retries)


def _problems(config: RunConfig) -> list[str]:
    """What is wrong with the configuration as such, that a request would not show."""
    from finetrace.api.run import evaluation

    return [
        *evaluation.problems(config),
        *_price_problems(config.judge_price),
        *_data_problems(config),
        *_template_problems(config),
        *_device_problems(config.infrastructure),
    ]


def _data_problems(config: RunConfig) -> list[str]:
    organism, data = config.organism, config.data
    if data.id != ORGANISM:
        return []
    if organism.dataset is None or organism.dataset.id is None:
        return [
            f"The data is that of the organism, and {organism.name} names none: give data.id a file or a hub data set, "
            "or leave out data=organism."
        ]
    return []


def _price_problems(price: tuple[float, ...]) -> list[str]:
    if len(price) in (0, 2):
        return []
    return [
        f"judge_price has {len(price)} numbers; it takes two, of a million tokens read and written, as in [0.15, 0.6]."
    ]


def _template_problems(config: RunConfig) -> list[str]:
    found = []
    for where, given in (("model", config.model.chat_template), ("variant", config.variant.chat_template)):
        if given is not None and "{" not in given and not Path(given).expanduser().is_file():
            found.append(f"The chat template of the {where}, {given}, is no file and no template.")
    return found


def _device_problems(where: Infrastructure) -> list[str]:
    if where.device == AUTO or not (where.device_map.base or where.device_map.finetuned):
        return []
    return [
        f"infrastructure.device is {where.device}, and infrastructure.device_map places the models too: give one of them."
    ]
