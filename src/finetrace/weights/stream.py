"""Changes between checkpoints on disk, one tensor of each in memory: no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetrace.core.errors import ModelError
from finetrace.models.files import kept
from finetrace.models.idle import without_idle
from finetrace.models.loading import LOAD_ERRORS, quiet
from finetrace.models.source import Source, one_line
from finetrace.weights.adapter_files import adapter_file_deltas
from finetrace.weights.delta import Delta, Matrix
from finetrace.weights.dense import Dense, same
from finetrace.weights.read import oriented, plain_name

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Stored:
    """A tensor in a safetensors file: read when first asked for, kept until `forget`.

    index: of one expert in a fused stack. turned: whether its columns are the outputs. rows: only the first so many.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    index: int | None = None
    turned: bool = False
    rows: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _held: Tensor | None = field(default=None, repr=False)

    def tensor(self) -> Tensor:
        """All of it, in the layout [out, in] if it is a matrix."""
        if self._held is None:
            self._held = self._read()
        return self._held

    def _read(self) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as stream:
            if self.index is not None:
                found = stream.get_slice(self.key)[self.index]
            elif self.rows is not None:
                found = stream.get_slice(self.key)[: self.rows]
            else:
                found = stream.get_tensor(self.key)
        return found.T if self.turned else found

    def forget(self) -> None:
        self._held = None

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]


@dataclass(frozen=True)
class Match:
    """Which tensors of two full checkpoints are compared, from their headers alone.

    both: name -> (before, after). matrices: of these, the linear layers' and experts'. missing: only the base has them;
    extra: only the tuned one. overlap: embeddings or heads with other numbers of rows -> (the base's, the other's): the
    rows that both have, by token id. dtypes: names whose stored dtypes differ -> both.
    """

    both: Mapping[str, tuple[Stored, Stored]]
    matrices: frozenset[str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    overlap: Mapping[str, tuple[int, int]]
    dtypes: Mapping[str, tuple[str, str]]

    def describe(self) -> tuple[str, ...]:
        """What has to be said beside the figures, a sentence each."""
        said = []
        for what, names in (
            ("Only the base has", self.missing),
            ("Only the tuned checkpoint has", self.extra),
        ):
            if names:
                said.append(f"{what} {len(names)} tensors, e.g. {names[0]}: they are not compared.")
        for name, (ours, theirs) in self.overlap.items():
            said.append(
                f"{name} has {ours} rows in the base and {theirs} in the tuned checkpoint: the first "
                f"{min(ours, theirs)} are compared."
            )
        if self.dtypes:
            name, (ours, theirs) = next(iter(self.dtypes.items()))
            said.append(
                f"{len(self.dtypes)} tensors are stored in other dtypes, e.g. {name} ({ours} and {theirs}): "
                "their change includes the rounding."
            )
        return tuple(said)


@dataclass(frozen=True)
class _Outline:
    """What an architecture's config says of its tensors: their names, which are embeddings, which are turned over."""

    names: frozenset[str]
    prefix: str
    embeddings: frozenset[str]
    turned: frozenset[str]
    head: str | None
    tokens: str | None

    def name(self, key: str) -> str:
        """The model's own name of a key, which files give with or without the prefix."""
        tries = (key, f"{self.prefix}.{key}", key.removeprefix(f"{self.prefix}."))
        return next((name for name in tries if name in self.names), key)


def match(base: Source, tuned: Source) -> Match:
    """Lines two full checkpoints up, however their files are cut; a ModelError where they are not of one shape."""
    for source in (base, tuned):
        if source.kind != "full":
            raise ModelError(
                f"{source.name} is an adapter: only full checkpoints are compared tensor by tensor."
            )
    outline, tuned = _outline(base), without_idle(tuned, base)
    old, new = (_stored(source, outline) for source in (base, tuned))
    _tie(old, new, outline)
    both: dict[str, tuple[Stored, Stored]] = {}
    overlap: dict[str, tuple[int, int]] = {}
    for name in old:
        if name not in new:
            continue
        before, after = old[name], new[name]
        if before.shape != after.shape:
            overlap[name] = _overlap(name, before, after, outline)
            before, after = (_first(one, min(overlap[name])) for one in (before, after))
        both[name] = before, after
    if not both:
        raise ModelError(
            f"{base.name} and {tuned.name} have no tensor in common: they are not of one architecture."
        )
    return Match(
        both=both,
        matrices=frozenset(
            n for n, (one, _) in both.items() if len(one.shape) == 2 and n not in outline.embeddings
        ),
        missing=tuple(sorted(old.keys() - new.keys())),
        extra=tuple(sorted(new.keys() - old.keys())),
        overlap=overlap,
        dtypes={
            name: (_short(one.dtype), _short(two.dtype))
            for name, (one, two) in both.items()
            if one.dtype != two.dtype
        },
    )


def streamed(base: Source, tuned: Source, found: Match | None = None) -> Iterator[Delta]:
    """The change of every matrix that differs between two full checkpoints, one at a time, in the base's order.

    Its two tensors are let go when the next one is asked for; used later, they are read again. Of an adapter's folder,
    the changes that its factors make.
    """
    if tuned.kind == "adapter":
        yield from adapter_file_deltas(tuned, weight=lambda module: stored_weight(base, module)).values()
        return
    found = match(base, tuned) if found is None else found
    for name, (before, after) in found.both.items():
        if name in found.matrices:
            if not same(before.tensor(), after.tensor()):
                yield Dense(_module(name), before, after)
            before.forget()
            after.forget()


def streamed_others(
    base: Source, tuned: Source, found: Match | None = None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(parameter, before, after) of every other tensor that differs: embeddings, norms, biases."""
    found = match(base, tuned) if found is None else found
    for name, (before, after) in found.both.items():
        if name not in found.matrices:
            if not same(before.tensor(), after.tensor()):
                yield name, before.tensor(), after.tensor()
            before.forget()
            after.forget()


def stored_weight(source: Source, module: str) -> Matrix:
    """One matrix of a checkpoint on disk, [out, in], by the name that its change has."""
    outline = _outline(source)
    found = _stored(source, outline)
    for name in (f"{module}.weight", module):
        if name in found:
            return found[name]
    raise ModelError(f"{source.name} holds no matrix {module}.")


def _stored(source: Source, outline: _Outline) -> dict[str, Stored]:
    """Every tensor under its name in the model; a fused stack of experts matrix by matrix."""
    found: dict[str, Stored] = {}
    for path, entry, key in kept(source):
        name = outline.name(key)
        if entry.dtype not in _DTYPES:
            raise ModelError(
                f"{source.name} stores {entry.name} as {entry.dtype}: quantised checkpoints cannot be subtracted; "
                "dequantise it first."
            )
        turned, dtype = name in outline.turned, _DTYPES[entry.dtype]
        if len(entry.shape) != 3:
            shape = entry.shape[::-1] if turned else entry.shape
            found[name] = Stored(path, entry.name, shape, dtype, turned=turned)
            continue
        shape = entry.shape[:0:-1] if turned else entry.shape[1:]
        for index in range(entry.shape[0]):
            found[f"{name}[{index}]"] = Stored(path, entry.name, shape, dtype, index, turned)
    return found


def _tie(old: dict[str, Stored], new: dict[str, Stored], outline: _Outline) -> None:
    """Where one file holds a head and the other ties it to the embedding, the embedding stands for the head."""
    head, tokens = outline.head, outline.tokens
    if head is None or tokens is None:
        return
    for one, other in ((old, new), (new, old)):
        if head in one and head not in other and tokens in other:
            held = other[tokens]
            other[head] = Stored(held.path, held.key, held.shape, held.dtype)


def _overlap(name: str, before: Stored, after: Stored, outline: _Outline) -> tuple[int, int]:
    by_token = {outline.head, outline.tokens}
    if name not in by_token or len(before.shape) != 2 or before.shape[1:] != after.shape[1:]:
        raise ModelError(
            f"{name} is {before.shape} in the base and {after.shape} in the tuned checkpoint: they are not of one "
            "architecture and size."
        )
    return before.shape[0], after.shape[0]


def _first(one: Stored, rows: int) -> Stored:
    return Stored(one.path, one.key, (rows, *one.shape[1:]), one.dtype, turned=one.turned, rows=rows)


def _outline(source: Source) -> _Outline:
    """Read off the architecture without its weights."""
    model = _skeleton(source)
    names, embeddings, turned = set(), set(), set()
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{plain_name(path)}.{key}"
            names.add(name)
            if isinstance(module, nn.Embedding):
                embeddings.add(name)
            if parameter.ndim == 2 and key == "weight" and oriented(module, parameter) is not parameter:
                turned.add(name)
            if parameter.ndim == 3 and module.__dict__.get("is_transposed", False):
                turned.add(name)
    paths = {id(module): path for path, module in model.named_modules()}
    head, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    return _Outline(
        names=frozenset(names),
        prefix=model.base_model_prefix,
        embeddings=frozenset(embeddings),
        turned=frozenset(turned),
        head=None if head is None else f"{paths[id(head)]}.weight",
        tokens=None if tokens is None else f"{paths[id(tokens)]}.weight",
    )


def _skeleton(source: Source) -> Any:
    import transformers as t

    try:
        with quiet(), torch.device("meta"):
            config = t.AutoConfig.from_pretrained(source.folder, local_files_only=True)
            language = type(config) in t.MODEL_FOR_CAUSAL_LM_MAPPING
            kind = t.AutoModelForCausalLM if language else t.AutoModelForImageTextToText
            return kind.from_config(config)
    except LOAD_ERRORS as error:
        raise ModelError(f"The architecture of {source.name} cannot be told: {one_line(error)}") from error


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
