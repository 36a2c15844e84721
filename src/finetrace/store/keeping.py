"""What of the hidden states is to be kept on disk. No torch here, so that the command line can name its defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.core.card import ALL, Needs
from finetrace.core.errors import BadInput

__all__ = ["TYPES", "Keeping", "identity", "is_exact", "layers_of", "parse_layers", "problems"]

TYPES = ("bfloat16", "float32")
_EXACT = {"bfloat16": {"bfloat16"}, "float32": {"float32", "bfloat16", "float16"}}


@dataclass(frozen=True)
class Keeping:
    """root: a folder of caches, or one cache, which must then be the right one. layers: relative or whole; () are those that
    methods read. dtype: what a number is stored in. nulls: those of each null are kept, too."""

    root: Path
    layers: tuple[int | float, ...] = ()
    dtype: str = TYPES[0]
    nulls: bool = False


def is_exact(run: object, dtype: str) -> bool:
    """Whether states of models that run in a type (torch's, or its name) are stored to the last bit.

    >>> is_exact("torch.float32", "bfloat16"), is_exact("bfloat16", "bfloat16")
    (False, True)
    """
    return str(run).removeprefix("torch.") in _EXACT[dtype]


def identity(keeping: Keeping | None, run: object) -> dict[str, Any]:
    """What a run key has of it: nothing where the states are what they would be without a store. run: what models run in."""
    return {} if keeping is None or is_exact(run, keeping.dtype) else {"states": keeping.dtype}


def layers_of(keeping: Keeping, needs: Sequence[Needs]) -> tuple[int | float, ...]:
    """The layers to keep, as they were named."""
    wanted = (layer for one in needs if one.steps and one.layers != ALL for layer in one.layers)
    return keeping.layers or tuple(dict.fromkeys(wanted))


def problems(keeping: Keeping | None, wanted: Mapping[str, Needs]) -> list[str]:
    """What is wrong, as far as it can be seen before a model loads. wanted: method -> its needs."""
    if keeping is None:
        return []
    found = []
    if keeping.root.exists() and not keeping.root.is_dir():
        found.append(f"Hidden states cannot be stored in {keeping.root}, which is a file: name a folder.")
    if keeping.dtype not in TYPES:
        found.append(f"Hidden states are stored as {' or '.join(TYPES)}, not {keeping.dtype}.")
    if not layers_of(keeping, list(wanted.values())):
        found.append(
            f"No hidden states would be stored: {', '.join(wanted)} names no layer at which it reads the texts again. Name layers "
            "(--store-layers 0.5, or preprocessing.layers=[0.5] of a run), or leave out the store."
        )
    return found


def parse_layers(text: str) -> tuple[int | float, ...]:
    """Layers as typed: whole ones are blocks, 0 the first; those with a point are relative, 1.0 the last.

    >>> parse_layers("0.5, 12")
    (0.5, 12)
    """
    return tuple(_layers(text))


def _layers(text: str) -> Iterator[int | float]:
    for part in filter(None, (one.strip() for one in text.split(","))):
        try:
            layer = float(part) if "." in part else int(part)
        except ValueError:
            layer = -1
        if layer < 0 or (isinstance(layer, float) and layer > 1):
            raise BadInput(
                f"'{part}' is no layer: it is relative, from 0.0 (first) to 1.0 (last), or a whole number."
            )
        yield layer
