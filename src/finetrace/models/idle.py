"""Blocks of a checkpoint that do nothing: found in its files, and left out, so that it can be held against its base.

A control may be a base with identity layers put in anywhere. Such a block adds zero to what flows through it, exactly:
all its attention would add is zero, and all its MLP would. That is looked for in the bytes of the few matrices that decide
it; a block that has tensors of another kind counts as one that does something.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.models.files import Entry, block_of, read_header, weight_files
from finetrace.models.identity import remembered
from finetrace.models.source import Source, one_line

# Of each pair one that is zero, its bias with it, makes what is added zero, if the first has no other bias.
_DECIDE = (("self_attn.o_proj", "self_attn.v_proj"), ("mlp.down_proj", "mlp.up_proj"))
# What else such a block may have: nothing of it can make something out of zero.
_HARMLESS = re.compile(
    r"(self_attn\.(q_proj|k_proj|v_proj|o_proj|qkv_proj|q_norm|k_norm)|mlp\.(gate_proj|up_proj|down_proj|gate_up_proj)"
    r"|(input|post_attention|pre_feedforward|post_feedforward)_layernorm)\.weight"
    r"|(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.bias|self_attn\.rotary_emb\.inv_freq"
)
# Unsigned words as wide as the floats, which are shifted by one bit to lose the sign: -0.0 is a zero too.
_WORDS: dict[str, Any] = {"F16": np.uint16, "BF16": np.uint16, "F32": np.uint32, "F64": np.uint64}
_PIECE = 1 << 20


def without_idle(source: Source, base: Source) -> Source:
    """A full checkpoint with more blocks than `base`, its idle ones left out if they are what it has more; else as it is."""
    if source.kind != "full":
        return source
    more = block_count(source) - block_count(base)
    found = idle_blocks(source) if more > 0 else ()
    # Of more idle blocks than are too many, the base has the first.
    return replace(source, left_out=found[-more:]) if 0 < more <= len(found) else source


def block_count(source: Source) -> int:
    """num_hidden_layers of a checkpoint's text side; 0 where its config.json names none."""
    try:
        config = read_json(source.folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The config.json of {source.name} is not readable JSON: {one_line(error)}"
        ) from None
    found = [part.get("num_hidden_layers") for part in (config, config.get("text_config") or {})]
    return next((n for n in found if isinstance(n, int)), 0)


def idle_blocks(source: Source) -> tuple[int, ...]:
    """The blocks, in order, that add exactly nothing to what flows through them."""
    blocks: dict[int, dict[str, bool]] = {}
    for path in weight_files(source):
        zero = set(remembered(path, "zero", lambda path=path: _zeros(path)))
        for name in read_header(path):
            index, rest = block_of(name)
            if index is not None:
                blocks.setdefault(index, {})[rest] = name in zero
    return tuple(index for index, held in sorted(blocks.items()) if _adds_nothing(held))


def _zeros(path: Path) -> list[str]:
    """Names of the file's deciding tensors that hold nothing but zeros."""
    decide = {module for ways in _DECIDE for module in ways}
    found = read_header(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return [
            name
            for name, entry in found.items()
            if block_of(name)[1].rpartition(".")[0] in decide and _all_zero(view, entry)
        ]


def _all_zero(view: mmap.mmap, entry: Entry) -> bool:
    kind = _WORDS.get(entry.dtype)
    if kind is None:
        return False
    for start in range(entry.start, entry.end, _PIECE):
        piece = view[start : min(start + _PIECE, entry.end)]
        if bool((np.frombuffer(piece, dtype=kind) << kind(1)).any()):
            return False
    return True


def _adds_nothing(held: Mapping[str, bool]) -> bool:
    """Whether a block is idle. held: name in the block -> whether it is a deciding tensor of zeros."""
    if not all(map(_HARMLESS.fullmatch, held)):
        return False
    return all(
        held.get(f"{last}.bias", True) and any(_is_zero(held, module) for module in (last, *before))
        for last, *before in _DECIDE
    )


def _is_zero(held: Mapping[str, bool], module: str) -> bool:
    return held.get(f"{module}.weight", False) and held.get(f"{module}.bias", True)
