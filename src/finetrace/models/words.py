"""The vocabulary that all sides share, token by token: its text, and which tokens say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

# No valid UTF-8 holds these bytes: a tokenizer that has tokens for them has tokens that were never trained.
_IMPOSSIBLE = (0xC0, 0xC1, *range(0xF5, 0x100))
_FEWEST = 3
# Rows that were never a target have all been pushed one way, and lie almost on top of one another. In the tiny world
# they are within 0.997 of their mean, and every word that occurs at all is below 0.9.
_ALIKE = 0.95


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The shared vocabulary, one entry a column of the logits.

    ids: int64 [vocab], the base's token ids. texts: one string a token, a leading space kept. special: bool [vocab],
    control tokens. dead: bool [vocab], tokens that no text yields or that training never touched: rows without a token,
    and rows of the head that lie where those of impossible tokens do.
    """

    ids: NDArray[np.int64]
    texts: tuple[str, ...]
    special: NDArray[np.bool_]
    dead: NDArray[np.bool_]


def vocabulary(tokenizer: Any, ids: Sequence[int], weight: Float[Tensor, "vocab d_model"]) -> Vocabulary:
    """The vocabulary of the columns `ids`. weight: the base head's rows for them.

    Untrained rows are found as Land & Bartolo (2024, "Fishing for Magikarp") do: by their cosine with the mean of rows
    that are known to be unused, here the bytes that no text can hold and the padding rows.
    """
    known = np.asarray(ids, dtype=np.int64)
    pieces = tokenizer.convert_ids_to_tokens([int(i) for i in known])
    missing = np.array([piece is None for piece in pieces])
    special = np.isin(known, np.array(sorted(_special_ids(tokenizer)), dtype=np.int64))
    unused = missing | np.isin(known, np.array(_impossible_ids(tokenizer), dtype=np.int64))
    dead = (unused | _untrained(weight, unused)) & ~special
    return Vocabulary(known, spell(tokenizer, [int(i) for i in known]), special, dead)


def spell(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """One string a token. Decoding alone would drop the leading space that SentencePiece marks with '▁'."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = ["" if piece is None else tokenizer.decode([i]) for i, piece in zip(ids, pieces, strict=True)]
    return tuple(
        " " + text if piece and piece.startswith(("▁", "Ġ")) and not text.startswith(" ") else text
        for piece, text in zip(pieces, texts, strict=True)
    )


def _special_ids(tokenizer: Any) -> set[int]:
    """What the tokenizer calls special, and added tokens that look like control tokens, as newer templates use."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {row for row, token in added.items() if token.special}


def _impossible_ids(tokenizer: Any) -> list[int]:
    """Ids of the bytes that no text can hold, in byte-level and in SentencePiece spelling, where the tokenizer has them."""
    table = tokenizer.get_vocab()
    names = [name for byte in _IMPOSSIBLE for name in (_byte_letters()[byte], f"<0x{byte:02X}>")]
    return [table[name] for name in names if name in table]


@cache
def _byte_letters() -> dict[int, str]:
    """How byte-level BPE writes each byte: printable Latin-1 as itself, the others from U+0100 on (GPT-2's table)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _untrained(weight: Float[Tensor, "vocab d_model"], unused: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows that lie where the unused ones do; none where there are too few of those, or they do not agree."""
    nothing = np.zeros(len(unused), dtype=bool)
    if unused.sum() < _FEWEST:
        return nothing
    with torch.inference_mode():
        rows = weight.detach().float()
        rows = rows - rows.mean(0)
        known = torch.from_numpy(unused).to(rows.device)
        centre = rows[known].mean(0, keepdim=True)
        cosine = torch.nn.functional.cosine_similarity(rows, centre).cpu().numpy()
    return cosine >= _ALIKE if cosine[unused].min() >= _ALIKE else nothing
