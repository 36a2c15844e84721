"""The streaming half: every layer's difference of the hidden states, summed by slice, group of texts and place."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.activation_difference_lens import Config
from finetrace.methods.activation_difference_lens.places import KINDS, Picked, pick, places
from finetrace.methods.activation_difference_lens.result import Result
from finetrace.methods.activation_difference_lens.summarise import summarise
from finetrace.methods.activation_difference_lens.sums import Sums


def observer(config: Config, subject: Subject) -> DifferenceLens:
    return DifferenceLens(config, subject)


class DifferenceLens:
    """Both models' states are widened before they are subtracted; sums are float64, counts int64. The size of it does
    not depend on how much is read."""

    def __init__(self, config: Config, subject: Subject) -> None:
        self._config, self._subject = config, subject
        self._sums = {
            kind: Sums(len(places(config, kind)), subject.n_layers, subject.d_model) for kind in KINDS
        }
        self._lost = torch.zeros(len(subject.slices), dtype=torch.int64)

    def see(self, step: Step) -> None:
        # What overflows in a low precision stays so in the residual stream: the last layer tells.
        last = step.hidden(self._subject.n_layers - 1)
        finite = (last[0].float().sum(-1) + last[1].float().sum(-1)).isfinite()
        lost = (step.keep & ~finite).sum(1)
        self._lost.index_add_(0, step.slice.cpu(), lost.cpu())
        bad = None if bool(finite.all()) else ~finite[:, :, None]
        for kind in KINDS:
            picked = pick(self._config, step, kind, finite)
            if picked is not None:
                self._add(step, picked, bad, self._sums[kind])

    def _add(self, step: Step, picked: Picked, bad: Tensor | None, sums: Sums) -> None:
        """One layer at a time, so that no more than one is held in float64. bad [batch, pos, 1]: states to be left out,
        which a weight of 0 does not do to an infinity."""
        rows, device = picked.rows, step.ids.device
        slices = step.slice[rows].tolist()
        groups = (step.key[rows.cpu().numpy()] % self._config.groups).tolist()
        blocks = [sums.block(where, device) for where in zip(slices, groups, strict=True)]
        small = []
        for layer in range(self._subject.n_layers):
            both = step.hidden(layer)
            both = both if bad is None else tuple(side.masked_fill(bad, 0.0) for side in both)
            base, other = (side.float() if len(rows) == len(side) else side[rows].float() for side in both)
            difference, states = picked.means(other - base), picked.means(base)
            norms = picked.means(torch.stack([base.norm(dim=-1), other.norm(dim=-1)], -1))
            small.append(torch.cat([difference.square().sum(-1, keepdim=True), norms], -1))
            for slice_ in dict.fromkeys(slices):
                theirs = [i for i, found in enumerate(slices) if found == slice_]
                sums.base_of(slice_, device)[layer] += states[theirs].sum(0)
            for block, row in zip(blocks, difference, strict=True):
                block.difference[layer] += row
        figures = torch.stack(small, 1).unbind(-1)
        for block, square, base_norm, other_norm, count in zip(blocks, *figures, picked.count, strict=True):
            block.square += square
            block.base_norm += base_norm
            block.other_norm += other_norm
            block.texts += count > 0
            block.tokens += count

    def see_logits(self, chunk: LogitChunk) -> None:
        return None

    def merge(self, later: Self) -> None:
        for kind, sums in self._sums.items():
            sums.merge(later._sums[kind])
        self._lost = self._lost + later._lost

    def state(self) -> dict[str, Tensor]:
        found = {"lost": self._lost}
        for kind, sums in self._sums.items():
            found |= {f"{kind}.{name}": tensor for name, tensor in sums.state().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        for kind, sums in self._sums.items():
            head = f"{kind}."
            sums.restore({name.removeprefix(head): t for name, t in state.items() if name.startswith(head)})
        self._lost = state["lost"].clone()

    def result(self) -> Result:
        return summarise(self._config, self._subject, self._sums, self._lost)
