"""Where a decoder-only model keeps its blocks, its final norm and its head, found by structure, not by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from finetrace.core.errors import BadInput, ModelError


@dataclass(frozen=True)
class Anatomy:
    """A loaded causal language model, taken apart.

    model: the whole of it. decoder: the part that turns ids into normed hidden states. blocks: its layers in order.
    """

    model: Any
    decoder: nn.Module
    blocks: nn.ModuleList

    @property
    def norm(self) -> nn.Module:
        """The final norm, between the last block and the head; a ModelError if it cannot be told."""
        found = [
            module
            for name, module in self.decoder.named_children()
            if "norm" in type(module).__name__.lower() and "embed" not in name
        ]
        if len(found) != 1:
            raise ModelError(
                f"The final norm of {type(self.model).__name__} cannot be found: its decoder has {len(found)} norms "
                "where one was expected; its layers cannot be read through the head."
            )
        return found[0]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)


@dataclass(frozen=True)
class Hidden:
    """Hidden states of one side. final: after the final norm [batch, pos, d_model]; layers: residual after block i."""

    final: Tensor | None
    layers: dict[int, Tensor]


class _Stop(BaseException):
    """Ends a forward after its last needed block. A BaseException, so that no library's `except Exception` eats it."""


def anatomy(model: Any) -> Anatomy:
    """Takes a transformers causal language model apart; a ModelError if its blocks cannot be found."""
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    found = [m for _, m in decoder.named_children() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    if len(found) != 1:
        raise ModelError(
            f"The blocks of {type(model).__name__} cannot be found: its decoder has {len(found)} lists of "
            f"{wanted} modules where one was expected; only decoder-only language models can be compared."
        )
    return Anatomy(model, decoder, found[0])


def layer_index(which: int | float, n_layers: int) -> int:
    """The block that a layer given as an int (negative: from the end) or as a relative float in [0, 1] means.

    0.0 is the first block, 1.0 the last; in between, the nearest, halves upward.
    """
    if isinstance(which, bool) or not isinstance(which, (int, float)):
        raise BadInput(f"A layer is an int or a float in [0, 1], not {which!r}.")
    if isinstance(which, float):
        if not 0.0 <= which <= 1.0:
            raise BadInput(f"The relative layer {which} is outside [0, 1].")
        return int(which * (n_layers - 1) + 0.5)
    if not -n_layers <= which < n_layers:
        raise BadInput(f"There is no layer {which}: this model has layers 0 to {n_layers - 1}.")
    return which % n_layers


def run_trunk(
    parts: Anatomy,
    ids: Int[Tensor, "batch pos"],
    attention: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    final: bool,
) -> Hidden:
    """One forward without the head; if `final` is False it ends after the last of `layers`.

    Right padding: positions count from 0 in every row. Hooks are gone when this returns or raises.
    """
    if not final and not layers:
        return Hidden(None, {})
    caught: dict[int, Float[Tensor, "batch pos d_model"]] = {}
    stop_after = None if final else max(layers)

    def keep(index: int):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            caught[index] = output if isinstance(output, Tensor) else output[0]
            if index == stop_after:
                raise _Stop

        return hook

    handles = [parts.blocks[index].register_forward_hook(keep(index)) for index in sorted(set(layers))]
    out = None
    try:
        with torch.inference_mode():
            out = parts.decoder(input_ids=ids, attention_mask=attention, use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    last = None if out is None else out.last_hidden_state
    return Hidden(last if final else None, {index: caught[index] for index in layers})
