"""How much a loss leans on each weight: SNIP and Wanda scores of all layers in one pass over calibration samples.

SNIP (Lee et al. 2019, as Wei et al. 2024 use it): I_ij = |W_ij| * sum over samples of |dL_s / dW_ij|, with L_s the mean
loss of a sample's response tokens; the absolute value is taken of each sample. Wanda (Sun et al. 2024): I_ij =
|W_ij| * ||X_j||_2, with X a module's inputs at response tokens.

No weight ever needs a gradient: the input X of each linear layer and the gradient G of its output are caught, and
|G_s^T X_s| is added to a float32 accumulator a few rows at a time, so that no sample's gradient is ever whole. The
accumulators are the price: 4 bytes a scored weight, 8 with halves. Where they do not fit, `score_in_parts` scores a
few layers at a time. Nothing is written to a file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from finetrace.core.errors import BadInput, DataError, ModelError, unknown
from finetrace.models.supervised import IGNORED, Sample, Supervised, collate, sample_losses
from finetrace.weights.layers import Layer, linear_layers, unwrapped, weight_of
from finetrace.weights.quantised import is_quantised

Kind = Literal["snip", "wanda"]
KINDS = ("snip", "wanda")
Half = Literal[0, 1]
Advance = Callable[[int, int], object]

# Output rows whose products are made at once: a block stays in a core's cache. An accelerator wants more at once.
_ROWS = 256
_ENTRIES = 1 << 25
# float16 has no room below 6e-8, which gradients of a mean loss go under.
_HALF_SCALE = 2.0**10


@dataclass(frozen=True, eq=False)
class Scores:
    """n: samples; halves: of its even and odd ones, (n,) if they are not told apart. tokens: response tokens of all.

    shapes: module -> (out, in), as `read.deltas` names and lays them out. skipped: matrices of the blocks that are no
    linear layers (fused experts, routers), which have no scores.
    """

    n: int
    tokens: int
    halves: tuple[int, ...]
    kinds: tuple[Kind, ...]
    shapes: Mapping[str, tuple[int, int]]
    skipped: tuple[str, ...]
    _snip: tuple[Mapping[str, Tensor], ...] = field(repr=False)
    _squares: tuple[Mapping[str, Tensor], ...] = field(repr=False)
    _layers: Mapping[str, nn.Module] = field(repr=False)

    def of(self, kind: Kind, half: Half | None = None) -> Mapping[str, Float[Tensor, "out in"]]:
        """Module -> scores, made when a module is asked for, so that no second copy of all is held.

        half: of the even (0) or the odd (1) samples only. Wanda's are of the weights as they are when asked.
        """
        if kind not in self.kinds:
            raise unknown("score", kind, self.kinds)
        if half is not None and len(self.halves) == 1:
            raise BadInput(
                "These scores were made without halves: give halves=True to score the samples apart."
            )
        parts = range(len(self.halves)) if half is None else (half,)
        make = self._snip_of if kind == "snip" else self._wanda_of
        return _Made(self.shapes, lambda module: make(module, parts))

    def columns(self) -> dict[str, Float[Tensor, "in"]]:
        """Module -> ||X_j||_2 of each input over all response tokens: what controls match columns by."""
        return {module: self._norms(module, range(len(self.halves))) for module in self.shapes}

    def _snip_of(self, module: str, parts: Sequence[int]) -> Tensor:
        return sum((self._snip[part][module] for part in parts[1:]), start=self._snip[parts[0]][module])

    def _wanda_of(self, module: str, parts: Sequence[int]) -> Tensor:
        return weight_of(self._layers[module]).abs().float() * self._norms(module, parts)

    def _norms(self, module: str, parts: Sequence[int]) -> Tensor:
        return torch.stack([self._squares[part][module] for part in parts]).sum(0).sqrt().float()


class _Made(Mapping[str, Tensor]):
    """Module -> tensor, made anew at each look."""

    def __init__(self, modules: Collection[str], make: Callable[[str], Tensor]) -> None:
        self._modules, self._make = modules, make

    def __getitem__(self, module: str) -> Tensor:
        if module not in self._modules:
            raise KeyError(module)
        return self._make(module)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def score(
    model: Any,
    samples: Sequence[Sample],
    *,
    pad: int,
    kinds: Sequence[Kind] = ("snip",),
    modules: Collection[str] | None = None,
    batch: int = 8,
    halves: bool = True,
    advance: Advance | None = None,
) -> Scores:
    """Scores of every linear layer inside the blocks, by one forward and one backward of each batch of samples.

    model: a transformers model, or a PEFT one, whose adapters are off meanwhile; a model from `Pair.open` is taken in
    the state that it is in. Its weights, gradients, modes and switches are as before afterwards, whatever happens.
    Embeddings and head are never scored. modules: only these. advance(done, of): samples so far.
    """
    (found,) = score_in_parts(
        model,
        samples,
        pad=pad,
        kinds=kinds,
        modules=modules,
        batch=batch,
        halves=halves,
        layer_groups=1,
        advance=advance,
    )
    return found


def score_in_parts(
    model: Any,
    samples: Sequence[Sample],
    *,
    pad: int,
    layer_groups: int,
    kinds: Sequence[Kind] = ("snip",),
    modules: Collection[str] | None = None,
    batch: int = 8,
    halves: bool = True,
    advance: Advance | None = None,
) -> Iterator[Scores]:
    """The scores of `score`, in so many runs of neighbouring blocks, one pass over the samples for each.

    For models whose accumulators do not fit: take the groups out of each part and let it go, then `groups.joined`. The
    model is as it was whenever a part is handed over. A later part takes less: gradients stop at its first block.
    """
    samples = tuple(samples)
    _require(samples, kinds, batch, halves, layer_groups)
    layers, skipped = linear_layers(model, modules)
    runs = _runs(layers, layer_groups)
    for number, run in enumerate(runs):
        part = _Pass(run, "snip" in kinds, 2 if halves else 1)
        before, total = number * len(samples), len(runs) * len(samples)
        with _still(model), part.hooked():
            for done in part.over(model, samples, pad, batch):
                if advance is not None:
                    advance(before + done, total)
            part.finish()
        yield Scores(
            n=len(samples),
            tokens=sum(int(sample.loss[1:].sum()) for sample in samples),
            halves=tuple(len(samples[half :: part.halves]) for half in range(part.halves)),
            kinds=tuple(kinds),
            shapes={name: layer.shape for name, layer in run.items()},
            skipped=skipped,
            _snip=part.snip,
            _squares=part.squares,
            _layers={name: layer.module for name, layer in run.items()},
        )


def accumulator_bytes(model: Any, *, modules: Collection[str] | None = None, halves: bool = True) -> int:
    """Memory that SNIP scores of all these layers take at once, beside the model's own."""
    layers, _ = linear_layers(model, modules)
    return sum(layer.shape[0] * layer.shape[1] for layer in layers.values()) * (8 if halves else 4)


def _runs(layers: Mapping[str, Layer], groups: int) -> list[dict[str, Layer]]:
    """The layers in so many runs of neighbouring blocks, as even as they go; fewer where there are fewer blocks."""
    blocks = sorted({layer.block for layer in layers.values()})
    groups = min(groups, len(blocks))
    run_of = {block: place * groups // len(blocks) for place, block in enumerate(blocks)}
    return [
        {name: layer for name, layer in layers.items() if run_of[layer.block] == run} for run in range(groups)
    ]


def _require(
    samples: Sequence[Sample], kinds: Sequence[str], batch: int, halves: bool, layer_groups: int
) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("score", kind, KINDS)
    if not kinds or batch < 1 or layer_groups < 1:
        raise BadInput("Scoring needs at least one kind of score, a batch of 1 and one group of layers.")
    if len(samples) < (2 if halves else 1):
        raise DataError(
            f"{len(samples)} samples are too few to score weights by{' halves' if halves else ''}."
        )
    for number, sample in enumerate(samples, 1):
        if not sample.loss[1:].any():
            raise DataError(f"Sample {number} has no response token, so that it has no loss.")


@contextmanager
def _still(model: Any) -> Iterator[None]:
    """Adapters off, no dropout, nothing that asks for a gradient; all of it as before afterwards, whatever happens."""
    from peft import PeftModel

    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    if isinstance(model, PeftModel) and model.get_model_status().merged_adapters:
        raise BadInput("An adapter is merged into this model's weights: unmerge it before scoring them.")
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            for parameter, _ in asked:
                parameter.requires_grad_(False)
            for module, _ in modes:
                # A quantised layer is not told that it is read only: on a CPU it would repack its weight for good.
                module.training = is_quantised(module)
            yield
    finally:
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)
        for module, training in modes:
            module.training = training


class _Mixed(RuntimeError):
    """A layer got the tokens of several samples without their places: experts do."""


@dataclass
class _Batch:
    """What goes through the model now. response: true at response tokens. rows: (half, length) of each sample."""

    response: Bool[Tensor, "batch pos"]
    rows: Sequence[tuple[int, int]]
    seed: Tensor
    calls: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    seen: Tensor | None = None
    seen_squares: Sequence[Tensor] = ()


class _Pass:
    """One pass over the samples. snip: half -> module -> sum over samples of |G_s^T X_s| [out, in]; squares: half ->
    module -> sum of squared inputs [in], float64."""

    def __init__(self, layers: Mapping[str, Layer], snip: bool, halves: int) -> None:
        self.layers, self.halves, self._backward = layers, halves, snip
        self.snip: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(halves))
        self.squares: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(halves))
        self._scale = 1.0
        self._batch: _Batch | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        def hook(name: str) -> Any:
            return lambda module, given, output: self._catch(name, given[0], output)

        handles = [layer.module.register_forward_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            self._batch = None
            for handle in handles:
                handle.remove()

    def over(self, model: Any, samples: Sequence[Sample], pad: int, batch: int) -> Iterator[int]:
        """Runs, telling after each batch how many samples are done. The longest come first: whether memory will do is
        then known at once, and little is padding."""
        model = unwrapped(model)
        weight = model.get_input_embeddings().weight
        self._scale = _HALF_SCALE if weight.dtype == torch.float16 else 1.0
        order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), i))
        done = 0
        while done < len(order):
            rows = order[done : done + batch]
            given = collate([samples[i] for i in rows], pad, weight.device)
            halves = [(i % self.halves, len(samples[i].ids)) for i in rows]
            seed = torch.zeros((), device=weight.device, requires_grad=self._backward)
            self._batch = _Batch(given.labels != IGNORED, halves, seed)
            try:
                self._run(model, given)
            except _Mixed:
                # The first forward finds this out, before any gradient has been added up.
                batch = 1
                for squares in self.squares:
                    squares.clear()
                continue
            done += len(rows)
            yield done

    def _run(self, model: Any, given: Supervised) -> None:
        with torch.inference_mode(False), torch.set_grad_enabled(self._backward):
            losses = sample_losses(model, given)
            if not bool(torch.isfinite(losses).all()):
                raise ModelError(
                    "The loss of a calibration sample is not finite: the model's weights or dtype are at fault."
                )
            if self._backward:
                (losses.sum() * self._scale).backward(inputs=[self._now.seed])
        for name in list(self._now.arrived):
            self._add(name)
        self._batch = None

    @property
    def _now(self) -> _Batch:
        if self._batch is None:
            raise ModelError("The model was run by another while it was scored.")
        return self._batch

    def _catch(self, name: str, x: Tensor, output: Tensor) -> Tensor | None:
        """A layer's input, and its output's gradient when that comes. The first ones get a gradient by a zero that asks
        for one, so that none goes further back than it must."""
        now = self._now
        together = x.ndim == 3 and x.shape[:2] == now.response.shape
        if not together and len(now.rows) > 1:
            raise _Mixed
        self._square(name, x, together)
        if not self._backward:
            return None
        if not output.requires_grad:
            output = output + now.seed.to(output.dtype)
        now.calls[name] = now.calls.get(name, 0) + 1
        kept = x.detach()
        output.register_hook(lambda gradient: self._caught(name, kept, gradient))
        return output

    def _caught(self, name: str, x: Tensor, gradient: Tensor) -> None:
        """A layer that is called more than once has one gradient: its absolute value waits for all of them."""
        now = self._now
        now.arrived.setdefault(name, []).append((x, gradient))
        if len(now.arrived[name]) == now.calls[name]:
            self._add(name)

    def _square(self, name: str, x: Tensor, together: bool) -> None:
        now = self._now
        if x is not now.seen:
            masks = [
                now.response & torch.tensor([h == half for h, _ in now.rows], device=x.device)[:, None]
                for half in range(self.halves)
            ]
            # Without their places, all of an expert's tokens count.
            kept = [x[mask] if together else x.flatten(0, -2)[: None if mask.any() else 0] for mask in masks]
            now.seen, now.seen_squares = x, [part.detach().double().square().sum(0) for part in kept]
        for half, squares in enumerate(now.seen_squares):
            held = self.squares[half]
            held[name] = held[name] + squares if name in held else squares

    def _add(self, name: str) -> None:
        """Adds |G_s^T X_s| of every sample of the batch."""
        layer, found = self.layers[name], self._now.arrived.pop(name)
        kind = torch.promote_types(found[0][0].dtype, torch.float32)
        for held in self.snip:
            if name not in held:
                held[name] = torch.zeros(layer.shape, dtype=kind, device=found[0][0].device)
        products = []
        for row, (half, length) in enumerate(self._now.rows):
            x = [_of_sample(part, row, length) for part, _ in found]
            g = [_of_sample(part, row, length) for _, part in found]
            x, g = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (x, g))
            products.append((self.snip[half][name], x, g.T))
        add_products(products)

    def finish(self) -> None:
        """Multiplies by |W|, in place; a layer that no token reached has zeros."""
        for name, layer in self.layers.items():
            weight = weight_of(layer.module)
            for half in range(self.halves):
                zeros = torch.zeros(layer.shape[1], dtype=torch.float64, device=weight.device)
                self.squares[half].setdefault(name, zeros)
                if not self._backward:
                    continue
                held = self.snip[half].setdefault(name, torch.zeros(layer.shape, device=weight.device))
                if not bool(torch.isfinite(held).all()):
                    raise ModelError(
                        f"The gradients of {name} overflow {weight.dtype}: load the model in bfloat16 or float32."
                    )
                held.mul_(weight.abs().to(held.dtype)).div_(self._scale)


def _of_sample(part: Tensor, row: int, length: int) -> Float[Tensor, "pos d"]:
    """One sample's tokens without its padding; all tokens where it is alone."""
    return part[row, :length] if part.ndim == 3 else part.flatten(0, -2)


def add_products(
    products: Sequence[tuple[Float[Tensor, "out in"], Float[Tensor, "pos in"], Float[Tensor, "out pos"]]],
) -> None:
    """total += |gradient @ x| for every (total, x, gradient), in blocks of output rows that stay in cache: the samples of
    a batch one after another on the same block."""
    rows, columns = products[0][0].shape
    step = _ROWS if products[0][0].device.type == "cpu" else max(_ROWS, _ENTRIES // max(1, columns))
    for start in range(0, rows, step):
        for total, x, gradient in products:
            total[start : start + step].add_((gradient[start : start + step] @ x).abs_())
