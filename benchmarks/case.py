"""What a benchmark is made of: arms, and one of them that the others are held against (the peer, mostly)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetrace.core.files import read_json
from finetrace.organisms.bundled import base_path

Work = Callable[[], object]


@dataclass(frozen=True)
class Arm:
    """One way to do the work.

    open: loads what the work needs and returns the work itself, which alone is timed. flop: of the matrix products,
    counted on paper. bytes: likewise, by what they are of.
    """

    open: Callable[[], Work]
    flop: int
    bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """arms: the `reference`, whose time is divided by each arm's, and "floor" (the bare products of our best arm) among
    them.

    memory_of: "work" (inputs and weights are held before) or "open" (the models themselves are what is measured).
    accuracy: rows against float64, made once. goal: judges the finished figures, if the `judged` arms were run.
    longer: the same work on more data, of which only the memory is measured. environment: of the processes in which memory is
    measured. notes: whatever else is to be said.
    """

    name: str
    arms: Mapping[str, Arm]
    memory_of: str
    goal: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    judged: tuple[str, ...]
    accuracy: Callable[[], list[dict[str, float]]] | None = None
    reference: str = "peer"
    longer: Mapping[str, Arm] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Preset:
    """A Llama shape and how much goes through it. kl_tokens: hidden states through the head in the case `kl`.

    bundled: the tiny world's own base, organisms and texts (`texts` a slice), instead of random ones.
    """

    d: int
    ffn: int
    heads: int
    kv_heads: int
    layers: int
    vocab: int
    kl_tokens: int
    batch: int
    length: int
    texts: int
    bundled: bool = False

    def block_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of every linear layer of one block."""
        kv = self.d * self.kv_heads // self.heads
        attention = [(self.d, self.d), (self.d, kv), (self.d, kv), (self.d, self.d)]
        return [*attention, (self.d, self.ffn), (self.d, self.ffn), (self.ffn, self.d)]

    def trunk_flop(self, tokens: int) -> int:
        """Of the linear layers of all blocks, one side."""
        return 2 * tokens * self.layers * sum(i * o for i, o in self.block_shapes())

    def head_flop(self, tokens: int) -> int:
        """Of one product with the head."""
        return 2 * tokens * self.d * self.vocab


def _tinyworld() -> Preset:
    shape = read_json(base_path() / "config.json")
    return Preset(
        d=shape["hidden_size"],
        ffn=shape["intermediate_size"],
        heads=shape["num_attention_heads"],
        kv_heads=shape["num_key_value_heads"],
        layers=shape["num_hidden_layers"],
        vocab=shape["vocab_size"],
        kl_tokens=1024,
        batch=16,
        length=shape["max_position_embeddings"],
        texts=16,
        bundled=True,
    )


PRESETS = {
    "smoke": Preset(
        d=64, ffn=128, heads=4, kv_heads=2, layers=2, vocab=600, kl_tokens=96, batch=2, length=12, texts=6
    ),
    "tiny": Preset(
        d=256,
        ffn=704,
        heads=8,
        kv_heads=4,
        layers=4,
        vocab=4000,
        kl_tokens=1024,
        batch=8,
        length=64,
        texts=32,
    ),
    "tinyllama-L2": Preset(
        d=2048,
        ffn=5632,
        heads=32,
        kv_heads=4,
        layers=2,
        vocab=32000,
        kl_tokens=1024,
        batch=4,
        length=64,
        texts=8,
    ),
    # Many tokens through a small model: what grows with them is seen soon.
    "long": Preset(
        d=128,
        ffn=256,
        heads=4,
        kv_heads=2,
        layers=2,
        vocab=600,
        kl_tokens=1024,
        batch=32,
        length=64,
        texts=350,
    ),
    "tinyworld": _tinyworld(),
}
