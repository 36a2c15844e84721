"""The streaming half: per-text sums by role, means by position, a histogram, and the most changed passages."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from finetrace.data import ROLES
from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.kl import Config
from finetrace.methods.kl.passages import Passages
from finetrace.methods.kl.result import Result, summarise

QUANTITIES = ("kl", "reverse_kl", "js", "delta_nll")
# log10(nats) edges: below 1e-12 is rounding even in the difference form, above 1e2 no softmax goes in practice.
LOG_EDGES = tuple(range(-12, 3))


def observer(config: Config, subject: Subject) -> KL:
    return KL(config, subject)


class KL:
    """Sums in float64, counts in int64. Rows are kept in the order seen; `result` sorts them by content key."""

    def __init__(self, config: Config, subject: Subject) -> None:
        self._config, self._subject = config, subject
        self._tables: list[dict[str, Tensor]] = []
        slices = len(subject.slices)
        self._position_sums = torch.zeros(slices, config.positions, dtype=torch.float64)
        self._position_counts = torch.zeros(slices, config.positions, dtype=torch.int64)
        self._histogram = torch.zeros(slices, len(LOG_EDGES) + 1, dtype=torch.int64)
        self._unscored = torch.zeros(slices, dtype=torch.int64)
        self._passages = Passages(config.passages, slices)
        self._open: tuple[Step, Tensor, Tensor, Tensor] | None = None

    def see(self, step: Step) -> None:
        self._close()
        rows, width = step.ids.shape
        sums = torch.zeros(rows, len(ROLES), len(QUANTITIES), dtype=torch.float64, device=step.ids.device)
        counts = torch.zeros(rows, len(ROLES), dtype=torch.int64, device=step.ids.device)
        self._open = (step, sums, counts, torch.full((rows, width), torch.nan, device=step.ids.device))

    def see_logits(self, chunk: LogitChunk) -> None:
        if self._open is None:
            raise RuntimeError("see_logits before see")
        _, sums, counts, kept = self._open
        values = torch.stack([chunk.kl, chunk.reverse_kl, chunk.js, chunk.delta_nll], -1).double()
        finite = values.isfinite().all(-1)
        row, role, position = chunk.batch_row[finite], chunk.role.long()[finite], chunk.position[finite]
        sums.index_put_((row, role), values[finite], accumulate=True)
        counts.index_put_((row, role), torch.ones_like(role), accumulate=True)
        kept[row, position] = chunk.kl[finite]
        lost = chunk.slice[~finite].cpu()
        self._unscored.index_put_((lost,), torch.ones_like(lost), accumulate=True)
        self._bin(values[finite, 0].cpu(), chunk.slice[finite].cpu(), position.cpu())

    def _bin(self, kl: Tensor, slices: Tensor, position: Tensor) -> None:
        edges = torch.tensor([10.0**e for e in LOG_EDGES], dtype=torch.float64)
        self._histogram.index_put_(
            (slices, torch.bucketize(kl, edges)), torch.ones_like(slices), accumulate=True
        )
        near = position < self._config.positions
        at = (slices[near], position[near])
        self._position_sums.index_put_(at, kl[near], accumulate=True)
        self._position_counts.index_put_(at, torch.ones_like(at[0]), accumulate=True)

    def _close(self) -> None:
        """Books the open step: its rows' sums, and its passages if they are among the most changed."""
        if self._open is None:
            return
        step, sums, counts, kept = self._open
        self._open = None
        key = torch.from_numpy(step.key.view("int64").copy())
        booked = {"row": step.row, "slice": step.slice, "sums": sums, "counts": counts}
        self._tables.append({"key": key, **{name: tensor.cpu() for name, tensor in booked.items()}})
        total = counts.sum(1).clamp(min=1)
        self._passages.offer(step, sums[:, :, 0].sum(1) / total, kept)

    def _table(self) -> dict[str, Tensor]:
        self._close()
        if not self._tables:
            empty = torch.zeros(0, dtype=torch.int64)
            shape = (0, len(ROLES))
            return {
                "key": empty,
                "row": empty,
                "slice": empty,
                "sums": torch.zeros(*shape, len(QUANTITIES), dtype=torch.float64),
                "counts": torch.zeros(shape, dtype=torch.int64),
            }
        return {name: torch.cat([table[name] for table in self._tables]) for name in self._tables[0]}

    def merge(self, later: Self) -> None:
        self._close()
        self._tables.append(later._table())
        self._position_sums += later._position_sums
        self._position_counts += later._position_counts
        self._histogram += later._histogram
        self._unscored += later._unscored
        self._passages.merge(later._passages)

    def state(self) -> dict[str, Tensor]:
        table = {f"table.{name}": tensor for name, tensor in self._table().items()}
        return table | self._bins() | self._passages.state()

    def _bins(self) -> dict[str, Tensor]:
        return {
            "position_sums": self._position_sums,
            "position_counts": self._position_counts,
            "histogram": self._histogram,
            "unscored": self._unscored,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self._open = None
        self._tables = [{name: state[f"table.{name}"] for name in ("key", "row", "slice", "sums", "counts")}]
        self._position_sums = state["position_sums"].clone()
        self._position_counts = state["position_counts"].clone()
        self._histogram = state["histogram"].clone()
        self._unscored = state["unscored"].clone()
        self._passages.restore(state)

    def result(self) -> Result:
        table = {name: tensor.numpy() for name, tensor in self._table().items()}
        bins = {name: tensor.numpy() for name, tensor in self._bins().items()}
        return summarise(self._subject, table, bins, self._passages.spelled(self._subject))
