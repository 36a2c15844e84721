"""Hidden states kept on disk where a user asked for them: made before the methods run, checked, and told what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.api.plan import TUNED, null_names
from finetrace.api.request import Chosen, Request
from finetrace.api.watch import Watch
from finetrace.core.amounts import size_in_words
from finetrace.core.card import ALL
from finetrace.core.errors import DataError
from finetrace.data import Corpus
from finetrace.engine import Contrast, Shape
from finetrace.engine.states import States, layout_of, made_of, write
from finetrace.models import Pair, layer_index
from finetrace.models.attention import named_attention
from finetrace.store.activations import Activations, Layout
from finetrace.store.keeping import Keeping, is_exact, layers_of
from finetrace.store.layout import KEY, begun, check_key, described, nearest, read_key, with_layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Size", "size_of", "states_for", "stored_facts"]


@dataclass(frozen=True)
class Size:
    """What is stored of each contrast. layers: blocks; token: bytes of one token; sides: how many contrasts."""

    layers: tuple[int, ...]
    token: int
    tokens: int
    sides: int
    root: Path

    @property
    def bytes(self) -> int:
        return self.token * self.tokens * self.sides

    @property
    def said(self) -> str:
        shown = ", ".join(map(str, self.layers))
        many = f" for each of {self.sides} fine-tunes" if self.sides > 1 else ""
        return (
            f"{size_in_words(self.bytes)} of hidden states in {self.root}: {self.tokens:,} tokens of {self.token:,} bytes "
            f"(layers {shown}){many}"
        )


def size_of(
    request: Request, methods: Sequence[Chosen], pair: Pair, corpus: Corpus, nulls: int
) -> Size | None:
    """How large what is to be stored is; None where nothing is."""
    keeping = request.store
    if keeping is None:
        return None
    layout = _layout(keeping, methods, pair, corpus)
    sides = 1 + (nulls if keeping.nulls else 0)
    return Size(layout.layers, layout.bytes(1), corpus.n_tokens, sides, keeping.root)


def states_for(
    request: Request, methods: Sequence[Chosen], pair: Pair, corpus: Corpus, watch: Watch
) -> States | None:
    """The caches that were asked for: what is there whole is checked, what is not is made. None where none was asked for."""
    keeping = request.store
    if keeping is None:
        return None
    layout = _layout(keeping, methods, pair, corpus)
    sides = (TUNED, *(null_names(pair) if keeping.nulls else ()))
    caches = {side: _Cache(request, keeping, pair, corpus, side, layout, watch).found() for side in sides}
    _tell(keeping, methods, pair, caches, watch)
    return States(keeping.dtype, caches)


def stored_facts(states: States | None, pair: Pair) -> dict[str, Any]:
    """What a report's protocol says of it."""
    if states is None:
        return {}
    exact = is_exact(pair.dtype, states.dtype)
    return {
        "stored_states": {
            "dtype": states.dtype,
            "exact": exact,
            "folders": {side: str(one.folder) for side, one in states.caches.items()},
        }
    }


def _layout(keeping: Keeping, methods: Sequence[Chosen], pair: Pair, corpus: Corpus) -> Layout:
    named = layers_of(keeping, [chosen.needs for chosen in methods])
    layers = [layer_index(layer, pair.n_layers) for layer in named]
    return layout_of(pair, corpus, layers, keeping.dtype)


@dataclass(frozen=True)
class _Cache:
    """One contrast's cache, found or made."""

    request: Request
    keeping: Keeping
    pair: Pair
    corpus: Corpus
    side: str
    layout: Layout
    watch: Watch

    def found(self) -> Activations:
        root, made_from = self.keeping.root, self._made_from
        if (root / KEY).is_file():
            return self._checked(self._named(root, made_from))
        there = Activations.holding(root, made_from, self.layout)
        return self._written(root, made_from) if there is None else self._checked(there)

    @property
    def _made_from(self) -> Mapping[str, Any]:
        request, pair = self.request, self.pair
        shape = Shape(request.shape.batch_size, request.shape.shard_tokens)
        settings = {
            "quantization": request.quantization,
            "attention": named_attention(pair.config("base"), request.attn_implementation),
        }
        return made_of(pair, self.corpus, self.side, shape, self.keeping.dtype, settings)

    def _named(self, folder: Path, made_from: Mapping[str, Any]) -> Activations:
        """The cache that the user pointed at, which has to be of this very pair and these texts."""
        there = read_key(folder)
        check_key(folder, there, with_layers_of(described(made_from, self.layout), there))
        return Activations(folder)

    def _checked(self, there: Activations) -> Activations:
        self.watch.begin(f"Checking hidden states in {there.folder}", there.shards, unit="shards")
        done = 0

        def advance(now: int, _: int) -> None:
            nonlocal done
            self.watch.advance(now - done)
            done = now

        there.check(advance)
        if len(there) != self.corpus.n_tokens:
            raise DataError(
                f"{there.folder} does not hold every token of the texts: delete it and store them again."
            )
        self.watch.end()
        return there

    def _written(self, root: Path, made_from: Mapping[str, Any]) -> Activations:
        watch, corpus = self.watch, self.corpus
        layout = begun(root, made_from, self.layout)
        other = nearest(root, described(made_from, layout))
        if other:
            watch.tell(f"No hidden states of this are whole in {root}.{other} They are made now.")
        size = size_in_words(layout.bytes(corpus.n_tokens))
        watch.begin(f"Storing hidden states of {corpus.n_tokens:,} tokens ({size})", corpus.n_tokens)
        contrast = Contrast("stored", self.side)
        into = (root, made_from, layout)
        found = write(
            self.pair, corpus, contrast, self.request.shape, into, advance=watch.advance, tell=watch.tell
        )
        watch.end()
        return found


def _tell(
    keeping: Keeping, methods: Sequence[Chosen], pair: Pair, caches: Mapping[str, Activations], watch: Watch
) -> None:
    """Where the states are; which methods read them, in place of forwards; and what that does to their figures."""
    reading = [one for one in methods if one.needs.steps]
    for side, one in caches.items():
        watch.tell(f"Hidden states of base and {side}: {one.folder} ({len(one):,} tokens).")
    names = ", ".join(one.card.name for one in reading)
    if reading and not is_exact(pair.dtype, keeping.dtype):
        watch.tell(
            f"{names}: hidden states are read as they are stored, in {keeping.dtype} (the base, and the change rounded by "
            "itself), on every contrast: figures differ a little from those without a store."
        )
    held = set(next(iter(caches.values())).layout.layers)
    for one in reading:
        named = () if one.needs.layers == ALL else one.needs.layers
        needed = {layer_index(layer, pair.n_layers) for layer in named}
        if not needed <= held:
            missing = ", ".join(map(str, sorted(needed - held)))
            watch.tell(
                f"{one.card.name} also reads layer {missing}, which is not stored: by forwards, each time."
            )
