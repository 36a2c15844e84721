"""Effects of an update on the loss of samples: at the base, and integrated on the straight way to the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import DataError, ModelError
from finetrace.methods.safety_attribution.places import Place
from finetrace.models.supervised import IGNORED, Sample, Supervised, collate, sample_losses

# What effects may miss of the change of loss, as a share of their absolute sum, before they are not to be read.
MOST_ERROR = 0.01


@dataclass(frozen=True, eq=False)
class Effects:
    """What an update does to the loss of n samples, in nats a token; rows in the samples' order. All float64.

    first [sample, place]: <dL/dW, W' - W> at the base. integrated [sample, place]: its integral over the path
    W + a (W' - W), a from 0 to 1, whose sum over places is L(W') - L(W). controls [draw, sample]: as `first`, summed
    over places, of the update turned in random directions. base, end [sample]: the loss at a = 0 and a = 1. at [point],
    path [point, sample]: the values of a at which the integrand was taken, and the loss there. errors: of one panel of
    nodes, and of as many again as were needed, see `completeness_error`.
    """

    first: np.ndarray
    integrated: np.ndarray
    controls: np.ndarray
    base: np.ndarray
    end: np.ndarray
    at: np.ndarray
    path: np.ndarray
    errors: tuple[float, ...]


def completeness_error(integrated: np.ndarray, change: np.ndarray) -> float | None:
    """|sum of the places' mean effects - mean change of loss| over the sum of their absolute values; None if that is 0.

    integrated [sample, place]; change [sample]: the tuned model's losses minus the base's.
    """
    effects = integrated.mean(0)
    size = float(np.abs(effects).sum())
    return abs(float(effects.sum() - change.mean())) / size if size else None


def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]: exact for polynomials up to degree 2 nodes - 1."""
    at, weight = np.polynomial.legendre.leggauss(nodes)
    return (at + 1) / 2, weight / 2


def batches(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Rows of samples, of like length together, at most `size` at a time."""
    order = sorted(range(len(samples)), key=lambda row: (len(samples[row].ids), row))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def losses(
    model: Any, samples: Sequence[Sample], *, pad: int, batch: int, device: torch.device | str = "cpu"
) -> Float[np.ndarray, "sample"]:
    """The loss of each sample in the model as it is, float64, without gradients."""
    found = np.zeros(len(samples))
    with torch.no_grad():
        for rows in batches(samples, batch):
            one = collate([samples[row] for row in rows], pad, device)
            found[rows] = sample_losses(model, one).double().cpu().numpy()
    return found


def effects(
    model: Any,
    found: Sequence[Place],
    samples: Sequence[Sample],
    *,
    tuned: np.ndarray,
    pad: int,
    nodes: int,
    batch: int = 16,
    panels: int = 4,
    advance: Callable[[int], None] | None = None,
) -> Effects:
    """The effects of the update at the places `found` on each sample; `model` is the base, and is left as it was.

    One forward and backward pass a batch and node, and one at the base; none of them makes a weight's gradient. tuned
    [sample]: the losses of the tuned model itself. Where `nodes` points miss the change of loss by more than MOST_ERROR, the
    path is cut in halves, and those in halves, with as many points each, into `panels` at most. Controls are the places'
    turns. advance: told the samples finished, nodes + 2 times each.
    """
    if not samples:
        raise DataError("There are no samples to take effects on.")
    device = next(model.parameters()).device
    tell = advance or (lambda n: None)
    with _frozen(model):
        steps = [
            (rows, _Step(model, found, collate([samples[row] for row in rows], pad, device)))
            for rows in batches(samples, batch)
        ]
        base, first, drawn, end = _ends(steps, len(samples), found, tell)
        cut, errors, told = 1, [], tell
        while True:
            at, path, integrated = _integrated(steps, len(samples), len(found), nodes, cut, told)
            error = completeness_error(integrated, tuned - base)
            errors += [] if error is None else [error]
            if error is None or error <= MOST_ERROR or cut >= panels:
                return Effects(first, integrated, drawn, base, end, at, path, tuple(errors))
            cut, told = 2 * cut, lambda n: None


_Steps = Sequence[tuple[list[int], "_Step"]]


def _ends(
    steps: _Steps, samples: int, found: Sequence[Place], tell: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Losses and effects at the base, effects of the controls there, and losses with the whole update."""
    base, end, first = np.zeros(samples), np.zeros(samples), np.zeros((samples, len(found)))
    drawn = np.zeros((_draws(found), samples))
    for rows, step in steps:
        taken = step.at(0.0, turns=True)
        base[rows], first[rows], drawn[:, rows] = taken.losses, taken.effects, taken.controls
        end[rows] = step.loss(1.0) if found else taken.losses
        tell(2 * len(rows))
    return base, first, drawn, end


def _draws(found: Sequence[Place]) -> int:
    return len(found[0].turns) if found else 0


def _integrated(
    steps: _Steps, samples: int, places: int, nodes: int, cut: int, tell: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [point], losses there [point, sample], and effects integrated over the path in `cut` panels [sample, place]."""
    at, weight = gauss_legendre(nodes)
    at = np.concatenate([(at + panel) / cut for panel in range(cut)]) if places else np.zeros(0)
    weight = np.tile(weight / cut, cut)
    path, total = np.zeros((len(at), samples)), np.zeros((samples, places))
    for rows, step in steps:
        for number, a in enumerate(at.tolist()):
            taken = step.at(a)
            path[number, rows] = taken.losses
            total[rows] += weight[number] * taken.effects
            tell(len(rows))
    return at, path, total


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside."""
    asking = [tensor for tensor in model.parameters() if tensor.requires_grad]
    try:
        for tensor in asking:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in asking:
            tensor.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class _Taken:
    """Of one batch at one point: losses [row], effects [row, place], controls [draw, row]; float64."""

    losses: np.ndarray
    effects: np.ndarray
    controls: np.ndarray


class _Step:
    """One batch under the update: every place hooked, and unhooked again whatever happens."""

    def __init__(self, model: Any, found: Sequence[Place], batch: Supervised) -> None:
        self._model, self._found, self._batch = model, found, batch
        targets = batch.labels[:, 1:] != IGNORED
        if not bool(targets.any(1).all()):
            raise DataError("A sample has no target: its loss is no number.")
        # The head sees targets alone, as rows of a matrix.
        self._target_rows = targets.nonzero()[:, 0]
        self._head = model.get_output_embeddings()

    def loss(self, a: float) -> Float[np.ndarray, "row"]:
        """The loss at W + a (W' - W)."""

        def moved(place: Place, inputs: Tensor, output: Tensor) -> Tensor:
            return output + a * place.addition(inputs)

        with self._hooked(lambda index: lambda i, o: moved(self._found[index], i, o)), torch.no_grad():
            return sample_losses(self._model, self._batch).double().cpu().numpy()

    def at(self, a: float, *, turns: bool = False) -> _Taken:
        """Losses and effects at W + a (W' - W), from one forward and one backward pass; with the places' turns if wanted."""
        size, draws = len(self._batch.ids), _draws(self._found) if turns else 0
        booked = torch.zeros(1 + draws, size, len(self._found), dtype=torch.float64)
        leaves: list[Tensor] = []

        def tap(index: int) -> Callable[[Tensor, Tensor], Tensor]:
            place = self._found[index]

            def moved(inputs: Tensor, output: Tensor) -> Tensor:
                output = self._one_row_each(output)
                with torch.set_grad_enabled(a != 0):
                    step = place.addition(inputs)
                out = output + a * step if a else output
                if not out.requires_grad:
                    leaves.append(out.detach().requires_grad_())
                    # A copy, so that what follows may write into it.
                    out = leaves[-1].clone()
                held, seen = step.detach(), inputs.detach()

                def book(gradient: Tensor) -> None:
                    booked[0, :, index] = self._by_sample(gradient * held, place)
                    for draw, addition in enumerate(place.turns if turns else ()):
                        booked[1 + draw, :, index] = self._by_sample(gradient * addition(seen), place)

                out.register_hook(book)
                return out

            return moved

        with self._hooked(tap), torch.enable_grad():
            value = sample_losses(self._model, self._batch)
            if leaves:
                torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        found = booked.numpy()
        return _Taken(value.detach().double().cpu().numpy(), found[0], found[1:].sum(-1))

    @contextmanager
    def _hooked(self, tap: Callable[[int], Callable[[Tensor, Tensor], Tensor]]) -> Iterator[None]:
        def hook(index: int):
            moved, name = tap(index), self._found[index].name

            def run(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor:
                if not arguments or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
                    raise ModelError(f"{name} does not turn one tensor into one: its effect cannot be taken.")
                return moved(arguments[0], output)

            return run

        handles = []
        try:
            for index, place in enumerate(self._found):
                handles.append(place.module.register_forward_hook(hook(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _one_row_each(self, output: Tensor) -> Tensor:
        """An output that all rows share (learnt positions), once for each row."""
        rows = len(self._batch.ids)
        shared = output.ndim == 3 and output.shape[0] == 1 and rows > 1
        return output.expand(rows, *output.shape[1:]) if shared else output

    def _by_sample(self, product: Tensor, place: Place) -> Float[Tensor, "row"]:
        """Products of gradient and addition summed per row of the batch, float64 on the CPU."""
        rows, width = self._batch.ids.shape
        total = product.flatten(1).sum(1, dtype=torch.float64)
        if product.ndim == 2 and place.module is self._head:
            empty = torch.zeros(rows, dtype=torch.float64, device=total.device)
            return empty.index_add(0, self._target_rows, total).cpu()
        if len(total) == rows:
            return total.cpu()
        if len(total) == rows * width:
            return total.view(rows, width).sum(1).cpu()
        if rows == 1:
            return total.sum(0, keepdim=True).cpu()
        raise ModelError(
            f"{place.name} mixes the tokens of several samples, so their effects cannot be told apart: set "
            "safety_attribution.batch to 1."
        )
