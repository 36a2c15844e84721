"""One base for many pairs: inside `keep_bases` a base outlives its pair, and the next pair on it gets it.

A base goes back when nothing of its pair is left. What PEFT put around its modules is taken off then, and it is kept only
if it is, tensor by tensor and hook by hook, what was loaded: a base that somebody changed is loaded again.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, final

import torch
from torch import Tensor, nn

from finetrace.models.architecture import Anatomy

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@final
class Lease:
    """A base in use. Whoever holds it has the base; it goes back when the last one has let go of the lease."""

    def __init__(self, parts: Anatomy) -> None:
        self.parts = parts


@final
class _Plain:
    """A base as it was loaded, and the way back to it."""

    def __init__(self, parts: Anatomy) -> None:
        self.parts = parts
        modules = list(parts.model.modules())
        self._places = [(parent, name, child) for parent in modules for name, child in _children(parent)]
        self._tensors = [
            (store, name, held, _writes(held)) for store, name, held in _tensors(modules) if held is not None
        ]
        self._hooks = [(module, _hooks(module)) for module in modules]

    def restore(self) -> bool:
        """Takes everything off that was put on; False if the base is not, bit for bit, what was loaded."""
        for parent, name, child in self._places:
            parent._modules[name] = child
        # PEFT leaves its settings on the model, and would think at the next adapter that others are still there.
        self.parts.model.__dict__.pop("peft_config", None)
        self.parts.model.eval().requires_grad_(False)
        for store, name, held, writes in self._tensors:
            if writes is None or store.get(name) is not held or _writes(held) != writes:
                return False
            held.grad = None
        return all(_hooks(module) == before for module, before in self._hooks)


@final
class Keeper:
    """The bases that no pair uses now. loaded, reused: how many were read from disk, and how many were not."""

    def __init__(self) -> None:
        self.loaded = self.reused = 0
        self._spare: dict[Hashable, _Plain] = {}
        self._out: Counter[Hashable] = Counter()
        self._closed = False

    def lease(self, key: Hashable, load: Callable[[], Anatomy]) -> Lease:
        """The base `key`; where it is not at hand, all others make room for it first, so that keeping costs no memory."""
        if key not in self._spare and self._out[key]:
            gc.collect()  # A pair that failed may be held by a cycle, and its base with it.
        plain = self._spare.pop(key, None)
        if plain is None:
            self.drop()
            plain = _Plain(load())
            self.loaded += 1
        else:
            self.reused += 1
        lease = Lease(plain.parts)
        self._out[key] += 1
        weakref.finalize(lease, self._back, key, plain).atexit = False
        return lease

    def drop(self) -> None:
        """Frees the bases that no pair uses."""
        self._spare.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees them, and keeps none that comes back later."""
        self._closed = True
        self.drop()

    def _back(self, key: Hashable, plain: _Plain) -> None:
        self._out[key] -= 1
        if not self._closed and plain.restore():
            self._spare[key] = plain


_keeper: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def keep_bases(keeper: Keeper | None = None) -> Iterator[Keeper]:
    """Pairs that are loaded inside share their bases, one after the other; inside another, that one's.

    keeper: one that keeps its bases afterwards too, for who comes back with it and closes it at the end.
    """
    outer = _keeper.get()
    if outer is not None:
        yield outer
        return
    held = keeper or Keeper()
    token = _keeper.set(held)
    try:
        yield held
    finally:
        _keeper.reset(token)
        if keeper is None:
            held.close()


def lease(key: Callable[[], Hashable], load: Callable[[], Anatomy]) -> Lease:
    """A base for a pair: kept if `keep_bases` goes on, else freshly loaded."""
    keeper = _keeper.get()
    return Lease(load()) if keeper is None else keeper.lease(key(), load)


def make_room() -> None:
    """Frees the bases that are kept for later, before something else needs the memory."""
    keeper = _keeper.get()
    if keeper is not None:
        keeper.drop()


def _children(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in parent._modules.items() if child is not None)


def _tensors(modules: list[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor | None]]:
    for module in modules:
        for store in (module._parameters, module._buffers):
            yield from ((store, name, held) for name, held in store.items())


def _writes(held: Tensor) -> int | None:
    """How often the tensor was written to in place; None for one made in inference mode, which does not count."""
    return None if held.is_inference() else held._version


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [dict(getattr(module, kind)) for kind in _HOOKS]
