"""What the models write when a direction is added to their residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.decoding import Decoding
from finetrace.core.result import Columns
from finetrace.data import ROLES, Corpus
from finetrace.engine.desk import Desk
from finetrace.methods.pca import Config
from finetrace.methods.pca.result import STEERED, Layer
from finetrace.models.architecture import anatomy
from finetrace.models.decode_batch import decode
from finetrace.models.generate import in_own_ids, stop_of

BASE = "base"
# Texts of each slice that are written on; tokens of a text that has no answer, and of an answer.
_TEXTS, _BEGINNING, _LONGEST, _WRITTEN = 2, 12, 96, 32
_ASSISTANT = ROLES.index("assistant")


def steered(config: Config, desk: Desk, layer: Layer) -> Columns:
    """Both models' greedy texts, plain and with each of the first `steer` directions added after the layer at every token,
    `strength` times the change's size along it, either way. Rows: see `Result`."""
    columns: dict[str, list[Any]] = {name: [] for name in STEERED}
    if not config.steer or desk.corpus is None:
        return Columns({name: [] for name in STEERED})
    rows = chosen(desk.corpus)
    begun = [beginning(desk.corpus, row) for row in rows]
    spelled = ["".join(desk.subject.spell(ids)) for ids in begun]
    pushes = [(0, 0.0), *((i, s * config.strength) for i in range(config.steer) for s in (1, -1))]
    for side in dict.fromkeys((BASE, desk.side)):
        for direction, times in pushes:
            if direction >= len(layer.directions):
                continue
            size = times * float(np.sqrt(layer.variance[direction]))
            push = torch.from_numpy(size * layer.directions[direction]).float()
            for row, prompt, text in zip(
                rows, spelled, _texts(desk, side, layer.layer, push, begun), strict=True
            ):
                where = desk.corpus.slices[int(desk.corpus.slice_of[row])]
                values = (direction, times, where, row, "base" if side == BASE else "tuned", prompt, text)
                for name, value in zip(STEERED, values, strict=True):
                    columns[name].append(value)
    return Columns({name: _column(values) for name, values in columns.items()})


def chosen(corpus: Corpus) -> list[int]:
    """A few rows of each slice, by their content, so that the order of the corpus moves nothing."""
    found: list[int] = []
    for code in range(len(corpus.slices)):
        rows = np.flatnonzero(corpus.slice_of == code)
        found += rows[np.argsort(corpus.keys[rows], kind="stable")][:_TEXTS].tolist()
    return found


def beginning(corpus: Corpus, row: int) -> list[int]:
    """A conversation up to its first answer, any other text's first tokens; base token ids."""
    tokens = corpus.tokens[row]
    answers = np.flatnonzero(np.asarray(tokens.role) == _ASSISTANT)
    stop = int(answers[0]) if len(answers) and answers[0] > 0 else _BEGINNING
    return [int(i) for i in tokens.ids[:stop]][-_LONGEST:]


def _texts(
    desk: Desk, side: str, layer: int, push: Float[Tensor, " d_model"], begun: Sequence[Sequence[int]]
) -> list[str]:
    pair = desk.pair
    prompts = [in_own_ids(pair, side, ids) for ids in begun]
    stops, tokenizer = [stop_of(pair, side)], pair.side_tokenizer(side)
    opened = pair.open(BASE) if side == BASE else desk.open()
    with opened as model, added(model, layer, push), torch.inference_mode():
        written = decode(
            model,
            prompts,
            torch.zeros(len(prompts), 0, dtype=torch.float64),
            Decoding(max_new_tokens=_WRITTEN),
            stops,
            drop=False,
        )
    return [str(tokenizer.decode(list(one.ids), skip_special_tokens=True)) for one in written]


@contextmanager
def added(model: Any, layer: int, push: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Inside, `push` is added to what block `layer` writes, at every token."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output + push.to(output)
        return (output[0] + push.to(output[0]), *output[1:])

    if not bool(push.any()):
        yield
        return
    handle = anatomy(model).blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _column(values: list[Any]) -> np.ndarray | list[str]:
    return values if not values or isinstance(values[0], str) else np.array(values)
