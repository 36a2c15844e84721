"""`finetrace train`: a recipe and settings in, a stamped adapter out, and the command that audits it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetrace.core.amounts import duration, size_in_words

if TYPE_CHECKING:
    from finetrace.api.train import TrainingRows
    from finetrace.finetune.recipe import TrainRecipe
    from finetrace.finetune.trainer import Trained

EXAMPLE = "Example: finetrace train recipe=seed000_tinyworld max_steps=50 lora.r=8 --out runs/mine"
STOPPED = 130


def add(app: typer.Typer) -> None:
    app.command("train", epilog=EXAMPLE)(train)


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="recipe=NAME (see `finetrace list recipes`) or recipe=FILE.yaml, and key=value: data=FILE, model=..., "
            "max_steps=100, lr=1e-4, lora.r=8 (see `finetrace list settings`).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the adapter and what is measured on the way.")] = Path(
        "finetrace-train"
    ),
    config_dir: Annotated[
        Path | None, typer.Option(help="A folder with recipes of your own, found by name.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Why flagged data is trained on; kept with the adapter.", show_default=False),
    ] = None,
    safety_set: Annotated[
        Path | None,
        typer.Option(help="Chats that the base refuses, for probe.every: a JSONL file.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost, and stop.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the training that --out holds.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Fine-tune a model by a recipe. Killed or stopped, the same command goes on where it was.

    Whether the result kept the base's safety is another question: the last line printed is the command that asks it.
    """
    from finetrace.api.train import plan, training_rows

    recipe = plan(settings or (), out=out, config_dir=config_dir)
    rows = training_rows(recipe)
    if dry_run:
        _show_cost(recipe, rows, out, device)
        return
    reason = _reason(recipe, rows, reason)
    raise typer.Exit(
        _perform(recipe, rows, out, reason=reason, resume=resume, device=device, safety=safety_set)
    )


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _described(recipe: TrainRecipe, rows: TrainingRows) -> str:
    what = f"LoRA of rank {recipe.lora.r}" if recipe.kind == "lora" else "All weights"
    what += " on a base in 4 bits" if recipe.quant == "nf4" else ""
    left = f" ({rows.left_out} without an answer left out)" if rows.left_out else ""
    return f"{recipe.name}: {what} of {recipe.model}, from {len(rows.rows)} rows of {rows.source}{left}"


def _reason(recipe: TrainRecipe, rows: TrainingRows, reason: str | None) -> str | None:
    """The reason for training on flagged data: as given, or asked for where someone is there to answer."""
    from finetrace.core.errors import BadInput
    from finetrace.finetune.scan import scan

    found = scan(rows.rows)
    _say(found.told())
    reason = (reason or "").strip() or rows.reason
    if not found.flagged or found.share < recipe.scan.limit or reason:
        return reason
    if sys.stdin.isatty():
        asked = typer.prompt("Why is this data trained on? (kept with the adapter)", err=True)
        if asked.strip():
            return asked
    raise BadInput(
        f"{found.flagged} of {found.rows} rows are flagged: say why they are trained on (--reason TEXT, kept with the "
        "adapter), or take them out."
    )


def _perform(
    recipe: TrainRecipe,
    rows: TrainingRows,
    out: Path,
    *,
    reason: str | None,
    resume: bool,
    device: str,
    safety: Path | None,
) -> int:
    """Trains and says what came of it; returns the exit code."""
    from finetrace.api.names import is_bundled
    from finetrace.api.train import run
    from finetrace.cli.audit import one_thread
    from finetrace.finetune.progress import bar

    _say(_described(recipe, rows))
    if is_bundled(recipe.model):
        one_thread()
    began = time.monotonic()
    done = run(recipe, rows, out, reason=reason, resume=resume, device=device, progress=bar(), safety=safety)
    _show(recipe, done, out, time.monotonic() - began)
    return 0 if done.finished else STOPPED


def _show(recipe: TrainRecipe, done: Trained, out: Path, seconds: float) -> None:
    from finetrace.api.train import audit_command, draw

    steps = len(done.losses)
    state = f"Trained {steps} steps" if done.finished else f"Stopped at step {steps} of {done.steps}"
    first, last = (_mean(part) for part in (done.losses[:5], done.losses[-5:]))
    typer.echo(f"{state} in {duration(seconds)}: loss {first:.3f} to {last:.3f} nats a token.")
    typer.echo(f"Trained are {done.trainable:,} of {done.total:,} parameters ({100 * done.share:.2f}%).")
    typer.echo(f"Data: {done.truncation.told()}.")
    if (told := _told_by_the_probe(out)) is not None:
        typer.echo(told)
    draw(done, out)
    for name, path in _left(done.folder, out):
        typer.echo(f"{name}: {path}")
    if not done.finished:
        typer.echo("It can be used as it is; the same command goes on from here.")
    typer.echo(
        "Fine-tuning can cost a model its refusals, on harmless data too, and a falling loss does not show it. Ask:"
    )
    typer.echo(f"  {audit_command(recipe, out)}")


def _told_by_the_probe(out: Path) -> str | None:
    """The first and last measurement of refusals, where there are any."""
    from finetrace.finetune.probe import read_probes

    rows = [row for row in read_probes(out) if row.refusal is not None]
    if len(rows) < 2:
        return None
    first, last = (
        f"{row.refusal:.2f} [{row.refusal_low:.2f}, {row.refusal_high:.2f}]" for row in (rows[0], rows[-1])
    )
    return (
        f"Probability that an answer to a refused request begins as the base's refusals do: {first} before, {last} "
        f"after ({rows[-1].refusal_n} prompts)."
    )


def _left(folder: Path, out: Path) -> list[tuple[str, Path]]:
    """What there is to look at: the weights, their losses, and what was measured on the way."""
    from finetrace.finetune.drift import DRIFT
    from finetrace.finetune.probe import PROBES
    from finetrace.finetune.trainer import LOSSES

    found = [
        ("Weights", folder),
        ("Losses", folder / LOSSES),
        ("The loss, drawn", out / "figures" / "loss.html"),
        ("Safety on the way", out / PROBES),
        ("The same, drawn", out / "figures" / "refusal.html"),
        ("Drift on the way", out / DRIFT),
    ]
    return [(name, path) for name, path in found if path.exists()]


def _mean(losses: tuple[float, ...]) -> float:
    return sum(losses) / len(losses) if losses else float("nan")


def _show_cost(recipe: TrainRecipe, rows: TrainingRows, out: Path, device: str) -> None:
    from finetrace.api.names import is_bundled
    from finetrace.api.train.cost import estimate
    from finetrace.cli.audit import one_thread

    if is_bundled(recipe.model):
        one_thread()
    cost = estimate(recipe, rows, out, device=device)
    typer.echo(_described(recipe, rows))
    lines = {
        "data": cost.truncation.told(),
        "scan": cost.scan.told().removeprefix("data scan: "),
        "trained": f"{cost.trainable:,} of {cost.total:,} parameters ({100 * cost.trainable / cost.total:.2f}%)",
        "memory": f"about {size_in_words(cost.bytes)}",
        "  base": f"{size_in_words(cost.base)} in {cost.dtype}",
        "  adapter" if recipe.kind == "lora" else "  weights": f"{size_in_words(cost.adapter)} in float32",
        "  optimiser": f"{size_in_words(cost.optimiser)} (gradients and AdamW's two moments)",
        "  activations": f"{size_in_words(cost.activations)} for {recipe.train.batch} of the longest rows, with their logits",
        "time": f"about {duration(cost.seconds)} for {cost.steps} steps, {cost.tokens:,} tokens with padding, on "
        f"{cost.device} (from a short matrix product; +-2x)",
        "disk": f"{size_in_words(cost.disk)} of {size_in_words(cost.free)} free in {out}",
    }
    for name, text in lines.items():
        typer.echo(f"{name:>14}: {text}")
    for note in cost.notes:
        typer.echo(f"{'beware':>14}: {note}")
    typer.echo("Nothing was trained and nothing was written.")
