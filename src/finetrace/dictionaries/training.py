"""Training an SAE (one model) or a crosscoder (base, tuned) on rows that come as a stream, and never lie in memory whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import write_bytes
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.fit import Fit, Share, fit
from finetrace.dictionaries.losses import Loss
from finetrace.dictionaries.settings import Training, check
from finetrace.dictionaries.start import scale_of, take
from finetrace.dictionaries.trainer import Progress, Trainer

__all__ = ["Checked", "Fit", "Progress", "Share", "Stream", "Trained", "Training", "fit", "train"]

Stream = Callable[[int], Iterator[Tensor]]
"""An epoch's rows, [row, model, d] a tensor, in any portions: the same rows whenever it is asked for the same epoch."""

_LOGGED, _JOURNALED = 100, 20
_GAIN = 1e-3
_MANY_DEAD = 0.1


@dataclass(frozen=True)
class Checked:
    """Held-out rows after a step."""

    step: int
    fit: Fit


@dataclass(frozen=True)
class Trained:
    """log: about a hundred steps, the last one among them. checked: held-out rows, as often as asked for; empty without.

    dead: latents without a code in the last rows (`Training.idle_rows`). warnings: what a reader of the dictionary has to
    know. stopped: why before the last step, None if it was not.
    """

    dictionary: Dictionary
    log: tuple[Progress, ...]
    checked: tuple[Checked, ...]
    dead: Bool[Tensor, " latent"]
    rows: int
    epochs: int
    warnings: tuple[str, ...]
    stopped: str | None = None


def train(
    stream: Stream,
    dims: tuple[int, int],
    training: Training,
    validation: Float[Tensor, "row model d"] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    journal: Path | None = None,
    texts: NDArray[np.uint64] | None = None,
) -> Trained:
    """dims: (models, d). The first rows of epoch 0 say how all are normalised; epochs follow until the steps are done.

    journal: a file that a killed training goes on from, to the same last bit; the caller removes it when the result is
    kept. texts: [row], the keys of the validation rows' texts, for intervals over texts. Everything is on the device that the
    stream's rows are on.
    """
    check(training, *dims)
    sample = take(_whole(stream(0), dims), max(training.sample, training.batch, dims[1]))
    _refuse_few(sample.shape[0], dims[1], training)
    trainer = Trainer(training, scale_of(sample, training))
    del sample
    run = _Run()
    if journal is not None and journal.exists():
        run = _recall(journal, trainer)
    batches = _batches(stream, dims, training.batch, run.place)
    while trainer.step < training.steps and run.stopped is None:
        x, run.place = next(batches)
        progress = trainer.learn(x)
        watch(progress)
        if _due(progress.step, training.steps, _LOGGED):
            run.log.append(progress)
        if validation is not None and _due(progress.step, training.steps, training.validate):
            run.checked.append(Checked(progress.step, fit(trainer.dictionary(), validation, texts)))
            run.stopped = _enough(run.checked, training.patience)
        if journal is not None and _due(progress.step, training.steps, _JOURNALED):
            _note(journal, trainer, run)
    return Trained(
        dictionary=trainer.dictionary(),
        log=tuple(run.log),
        checked=tuple(run.checked),
        dead=trainer.dead,
        rows=trainer.rows,
        epochs=run.place.epoch + 1,
        warnings=tuple(_warnings(trainer)),
        stopped=run.stopped,
    )


@dataclass(frozen=True)
class _Place:
    """The next row to be read: so many of this epoch have been."""

    epoch: int = 0
    rows: int = 0


@dataclass
class _Run:
    place: _Place = field(default_factory=_Place)
    log: list[Progress] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    stopped: str | None = None


def _due(step: int, steps: int, times: int) -> bool:
    """Whether one of `times` equal parts of the steps ends with this one; the last step ends one, if there are any."""
    return times > 0 and step * times // steps > (step - 1) * times // steps


def _whole(rows: Iterator[Tensor], dims: tuple[int, int]) -> Iterator[Tensor]:
    """The stream's portions, each of the right shape and finite throughout."""
    seen = 0
    for some in rows:
        if some.ndim != 3 or tuple(some.shape[1:]) != dims:
            raise DataError(
                f"A dictionary of {dims[0]} model(s) with {dims[1]} dimensions reads [row, {dims[0]}, {dims[1]}], and the "
                f"stream gave {[*some.shape]}: is it of another layer, or of one model where two are read?"
            )
        if not bool(torch.isfinite(some).all()):
            bad = (~torch.isfinite(some)).flatten(1).any(1)
            raise DataError(
                f"{int(bad.sum())} of rows {seen} to {seen + some.shape[0] - 1} are not finite (the first is row "
                f"{seen + int(bad.nonzero()[0])}): a model overflows in this dtype, or its weights are broken."
            )
        seen += some.shape[0]
        yield some


def _refuse_few(rows: int, d: int, training: Training) -> None:
    """`rows`: all that there are, or at least as many as are asked for here."""
    if rows < d:
        raise DataError(
            f"There are {rows} rows (tokens) of {d} dimensions: with fewer rows than dimensions any direction fits. Read more "
            "texts."
        )
    if rows < training.batch:
        raise DataError(
            f"There are {rows} rows, fewer than a batch of {training.batch}: read more texts, or lower `batch`."
        )
    if training.kind == "batch_topk" and rows * training.k < training.latents:
        raise DataError(
            f"{rows} rows with {training.k} codes each are fewer codes than the {training.latents} latents: read more texts, "
            "or ask for fewer latents."
        )


def _batches(
    stream: Stream, dims: tuple[int, int], size: int, place: _Place
) -> Iterator[tuple[Tensor, _Place]]:
    """Batches of exactly `size` rows and the place after each; a batch may end one epoch and begin the next."""
    held: list[Tensor] = []
    epoch, skipped = place.epoch, place.rows
    while True:
        seen = 0
        for some in _whole(stream(epoch), dims):
            rest = some[max(0, skipped - seen) :]
            seen += some.shape[0]
            while rest.shape[0]:
                wanted = size - sum(part.shape[0] for part in held)
                held.append(rest[:wanted])
                rest = rest[wanted:]
                if held[-1].shape[0] == wanted:
                    yield torch.cat(held), _Place(epoch, seen - rest.shape[0])
                    held = []
        if seen == 0:
            raise DataError(
                f"Epoch {epoch} of the stream gave no rows: it has to be readable as often as it is asked for."
            )
        epoch, skipped = epoch + 1, 0


def _enough(checked: list[Checked], patience: int | None) -> str | None:
    """Why to stop: nothing gained on held-out rows in the last `patience` looks."""
    found = [value for one in checked if (value := one.fit.mean_unexplained()) is not None]
    if patience is None or len(found) <= patience:
        return None
    if min(found[-patience:]) < min(found[:-patience]) * (1 - _GAIN):
        return None
    return f"held-out rows were not given back better in the last {patience} looks (step {checked[-1].step})"


def _warnings(trainer: Trainer) -> Iterator[str]:
    dead, latents = int(trainer.dead.sum()), trainer.training.latents
    if dead > _MANY_DEAD * latents:
        yield (
            f"{dead} of {latents} latents are dead: none had a code in the last {trainer.training.idle_rows()} rows. Fewer "
            "latents, or longer training, would waste less."
        )
    if trainer.training.kind == "batch_topk" and trainer.threshold == 0:
        yield "No code was ever kept: the inference threshold is not known."


def _identity(trainer: Trainer) -> str:
    """What has to be the same for a journal to be gone on from; the rows are told by their mean and scale."""
    return json.dumps(
        {
            "format": "finetrace dictionary training 1",
            "training": asdict(trainer.training),
            "models": trainer.models,
            "d": trainer.d,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        sort_keys=True,
    )


def _note(journal: Path, trainer: Trainer, run: _Run) -> None:
    header = {
        "identity": _identity(trainer),
        "run": json.dumps(
            {
                "place": asdict(run.place),
                "log": [asdict(one) for one in run.log],
                "checked": [asdict(one) for one in run.checked],
                "stopped": run.stopped,
            }
        ),
    }
    write_bytes(journal, save(trainer.state(), header))


def _recall(journal: Path, trainer: Trainer) -> _Run:
    """Puts the trainer where the journal left it, if it is of the same training and the same rows."""
    try:
        with safe_open(journal, framework="pt") as opened:
            header = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{journal} is cut short or corrupt ({error}): remove it to begin again.") from None
    if header.get("identity") != _identity(trainer):
        raise BadInput(f"{journal} is of another training, or another machine: remove it to begin again.")
    ours = trainer.scale
    if not (torch.equal(state["mean"], ours.mean.cpu()) and torch.equal(state["scale"], ours.scale.cpu())):
        raise BadInput(f"{journal} is of a training on other rows: remove it to begin again.")
    trainer.restore(state)
    found = json.loads(header["run"])
    return _Run(
        _Place(**found["place"]),
        [_progress(one) for one in found["log"]],
        [_checked(one) for one in found["checked"]],
        found["stopped"],
    )


def _progress(kept: dict[str, Any]) -> Progress:
    loss = dict(kept.pop("loss"))
    reconstruction = tuple(loss.pop("reconstruction"))
    return Progress(**kept, loss=Loss(**loss, reconstruction=reconstruction))


def _checked(kept: dict[str, Any]) -> Checked:
    found = kept["fit"]
    shares = tuple(Share(**share) for share in found["unexplained"])
    difference = Share(**found["difference"]) if found["difference"] else None
    return Checked(kept["step"], Fit(**(found | {"unexplained": shares, "difference": difference})))
