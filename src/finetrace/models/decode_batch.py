"""One batch of prompts to its answers, token by token: left-padded, keys and values kept, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from finetrace.core.decoding import Decoding
from finetrace.models.head import scale_and_cap

__all__ = ["Written", "decode"]

_BLOCK = 32
"""Positions by which the buffers of keys and values grow."""
_WORTH = 4
"""Rows are dropped when a part of the batch of one in this many has ended: dropping copies all that is kept."""


@dataclass(frozen=True)
class Written:
    """One answer. ids: its tokens without the one that ended it. finished: it ended by itself."""

    ids: tuple[int, ...]
    finished: bool


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws: Float[Tensor, "row step"],
    decoding: Decoding,
    stops: Sequence[frozenset[int]],
    *,
    drop: bool,
) -> list[Written]:
    """The answer to every row's prompt (the model's own token ids).

    Rows are the same prompts once for each of `stops`: all of the first side's, then all of the second's. drop: a prompt
    that every side has answered leaves the batch, so that all sides' batches keep one shape.
    """
    ids, attention = _left_padded(prompts, min(stops[0], default=0), model.device)
    step, position = ids, (attention.cumsum(1) - 1).clamp(min=0)
    draws, sides, left = draws.to(ids.device), len(stops), len(prompts) // len(stops)
    rows = torch.arange(len(prompts), device=ids.device)
    table = _stop_table(stops, model.get_output_embeddings(), ids)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
    said = ids.new_full((len(prompts), decoding.max_new_tokens), -1)
    cache = _cache(model)
    drop = drop and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    for number in range(decoding.max_new_tokens):
        chosen = _choose(
            _next(model, step, attention, position, cache),
            None if decoding.temperature == 0 else draws[rows, number],
            decoding,
        )
        said[rows, number] = chosen
        ended |= _ends(table, chosen, sides)
        over = ended.view(sides, left).all(0)
        going = left - int(over.sum())
        if not going:
            break
        step, position = chosen[:, None], position[:, -1:] + 1
        if drop and going * _WORTH <= left * (_WORTH - 1):
            kept = (~over).repeat(sides).nonzero()[:, 0]
            cache.batch_select_indices(kept)
            step, position, attention = step[kept], position[kept], attention[kept]
            ended, rows, left = ended[kept], rows[kept], going
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
    each = len(prompts) // sides
    return [_cut(row, stops[place // each]) for place, row in enumerate(said.tolist())]


def _next(model: Any, step: Tensor, attention: Tensor, position: Tensor, cache: Any) -> Tensor:
    """Float32 logits after the last position. The states are two-dimensional before the head: a third dimension would
    copy the head once a row on a CPU in bfloat16."""
    hidden = (
        model.get_decoder()(
            input_ids=step,
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        .last_hidden_state[:, -1]
        .contiguous()
    )
    scale, cap = scale_and_cap(model.config.get_text_config(decoder=True))
    # The last layer of a model that lies over several GPUs is on another one than the first.
    logits = model.get_output_embeddings()(hidden).float().to(step.device)
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        attention[row, longest - len(prompt) :] = 1
    return ids.to(device), attention.to(device)


def _stop_table(stops: Sequence[frozenset[int]], head: Any, ids: Tensor) -> Bool[Tensor, "side vocab"]:
    most = max([0, *(token for stop in stops for token in stop)]) + 1
    table = torch.zeros(len(stops), most, dtype=torch.bool)
    for side, stop in enumerate(stops):
        table[side, sorted(stop)] = True
    return table.to(ids.device)


def _ends(table: Bool[Tensor, "side vocab"], chosen: Int[Tensor, "row"], sides: int) -> Bool[Tensor, "row"]:
    known = chosen.clamp(max=table.shape[1] - 1).view(sides, -1)
    return table.gather(1, known).view(-1) & (chosen < table.shape[1])


def _choose(
    logits: Float[Tensor, "row vocab"], draws: Float[Tensor, "row"] | None, decoding: Decoding
) -> Int[Tensor, "row"]:
    """Greedy, or by the place of each row's draw in the probabilities, in the order of the vocabulary: two tokens as
    likely as each other never change places because of rounding."""
    if draws is None:
        return logits.argmax(-1)
    probs = (logits.double() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        kept = (ordered.cumsum(-1) - ordered) < decoding.top_p
        probs = probs * torch.zeros_like(kept).scatter(1, order, kept)
    total = probs.cumsum(-1)
    place = torch.searchsorted(total, draws[:, None] * total[:, -1:], right=True)
    # A draw next to 1 may round up to the end, where the last tokens may have no probability at all.
    last = (probs > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    return torch.minimum(place, last)[:, 0]


def _cut(ids: Sequence[int], stop: frozenset[int]) -> Written:
    """-1 stands where a row that had ended was no longer written."""
    end = next((place for place, one in enumerate(ids) if one in stop), None)
    return Written(tuple(ids[:end]), end is not None)


class _Buffer(DynamicLayer):
    """Keys and values of one layer in buffers with room to grow, so that a new token copies one position, not all."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_room = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
        self._value_room = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        total = held + key_states.shape[2]
        if total > self._key_room.shape[2]:
            room = total + _BLOCK
            self._key_room = _grown(self._key_room, room, held)
            self._value_room = _grown(self._value_room, room, held)
        self._key_room[:, :, held:total] = key_states
        self._value_room[:, :, held:total] = value_states
        self.keys, self.values = self._key_room[:, :, :total], self._value_room[:, :, :total]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        held = self.get_seq_length()
        self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
        self.keys, self.values = self._key_room[:, :, :held], self._value_room[:, :, :held]


def _grown(room: Tensor, size: int, held: int) -> Tensor:
    made = room.new_empty(*room.shape[:2], size, room.shape[3])
    made[:, :, :held] = room[:, :, :held]
    return made


def _cache(model: Any) -> Any:
    """transformers' own for the architecture, with our buffers where a layer keeps everything."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Buffer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
