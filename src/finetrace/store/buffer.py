"""A shuffle buffer: rows that come together are parted before a trainer sees them, with nothing stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Shaped
from torch import Tensor

from finetrace.core.errors import BadInput

__all__ = ["shuffled"]


def shuffled(
    rows: Iterable[Shaped[Tensor, "row ..."]],
    size: int,
    batch: int,
    generator: torch.Generator,
    *,
    last: bool = True,
) -> Iterator[Shaped[Tensor, "batch ..."]]:
    """Every row exactly once, in batches drawn at random from the `size` rows at hand.

    The buffer is filled, half of it is given out in random order, the gap is filled with what comes next, and so on: a row
    waits for a geometric number of rounds, and memory is `size` rows and a batch whatever the stream's length. last: the
    rest that fills no batch is given too.

    The batches depend on the rows, their order, `size`, `batch` and the generator's seed; not on how the stream is cut into
    blocks. So there is no state to save: after k batches, the same call with the first k dropped goes on as if never stopped.
    """
    if not 1 <= batch <= size:
        raise BadInput(f"A shuffle buffer of {size} rows cannot give batches of {batch}.")
    # Whole batches only, and as near to half of the buffer as they come.
    given = max(1, size // 2 // batch) * batch
    held: Tensor | None = None
    free = torch.arange(size)
    for block in rows:
        if held is None:
            held = torch.empty([size, *block.shape[1:]], dtype=block.dtype, device=block.device)
        elif (held.shape[1:], held.dtype, held.device) != (block.shape[1:], block.dtype, block.device):
            raise BadInput(
                f"A shuffle buffer of rows {list(held.shape[1:])} {held.dtype} was given {list(block.shape[1:])} {block.dtype}."
            )
        while len(block):
            taken = min(len(block), len(free))
            held[free[:taken].to(held.device)] = block[:taken]
            block, free = block[taken:], free[taken:]
            if not len(free):
                order = torch.randperm(size, generator=generator)
                yield from _batches(held, order[:given], batch)
                free = order[:given]
    if held is None:
        return
    full = torch.ones(size, dtype=torch.bool)
    full[free] = False
    left = full.nonzero()[:, 0]
    left = left[torch.randperm(len(left), generator=generator)]
    yield from _batches(held, left if last else left[: len(left) // batch * batch], batch)


def _batches(held: Tensor, order: Tensor, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(order), batch):
        yield held[order[start : start + batch].to(held.device)]
