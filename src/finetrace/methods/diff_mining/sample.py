"""A bounded sample of positions with the tokens promoted there: the same ones in whatever order they come."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIELDS = ("rank", "key", "slice", "position", "ids", "values")


class Sample:
    """The `keep` positions of smallest hash of (text, position, seed): bottom-k sampling, uniform over positions.

    Source: Cohen & Kaplan 2007 (bottom-k sketches); the hash is splitmix64 (Steele et al. 2014). Two contrasts that
    read the same texts draw the same positions.
    """

    def __init__(self, keep: int, k: int, seed: int) -> None:
        self._keep, self._k, self._seed = keep, k, seed
        self._parts = [self._nothing()]
        self._bound = np.uint64(2**64 - 1)

    def _nothing(self) -> dict[str, np.ndarray]:
        return {
            "rank": np.zeros(0, np.uint64),
            "key": np.zeros(0, np.uint64),
            "slice": np.zeros(0, np.int64),
            "position": np.zeros(0, np.int64),
            "ids": np.zeros((0, self._k), np.int64),
            "values": np.zeros((0, self._k), np.float32),
        }

    def offer(
        self,
        key: NDArray[np.uint64],
        slices: np.ndarray,
        position: np.ndarray,
        ids: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """key, slices, position: [token]; ids, values: the largest rises there, [token, k]."""
        rank = _hash(key, position, self._seed)
        inside = rank <= self._bound
        offered = zip(_FIELDS, (rank, key, slices, position, ids, values), strict=True)
        self._parts.append({name: column[inside] for name, column in offered})
        if sum(len(part["rank"]) for part in self._parts) > 2 * self._keep + 1024:
            self._trim()

    def _trim(self) -> None:
        whole = {name: np.concatenate([part[name] for part in self._parts]) for name in _FIELDS}
        order = np.lexsort((whole["position"], whole["key"], whole["rank"]))[: self._keep]
        self._parts = [{name: column[order] for name, column in whole.items()}]
        if len(order) == self._keep > 0:
            self._bound = self._parts[0]["rank"][-1]

    def merge(self, later: Self) -> None:
        self._parts += later._parts
        self._trim()

    def columns(self) -> dict[str, np.ndarray]:
        """rank, key: uint64; slice, position: int64 [sample]; ids: int64, values: float32 [sample, k]; by rank."""
        self._trim()
        return self._parts[0]

    def state(self) -> dict[str, Tensor]:
        found = self.columns()
        signed = {name: found[name].view(np.int64) for name in ("rank", "key")}
        return {
            f"sample.{name}": torch.from_numpy(column.copy()) for name, column in (found | signed).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        whole = {name: state[f"sample.{name}"].numpy().copy() for name in _FIELDS}
        unsigned = {name: whole[name].view(np.uint64) for name in ("rank", "key")}
        self._parts, self._bound = [whole | unsigned], np.uint64(2**64 - 1)
        self._trim()


def _hash(key: NDArray[np.uint64], position: np.ndarray, seed: int) -> NDArray[np.uint64]:
    state = _mix(key + _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN))
    return _mix(state + (position.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
