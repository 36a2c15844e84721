"""`finetrace drift`: seed 003's experiment, in one go or phase by phase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finetrace.api.drift import Experiment

EXAMPLE = "Example: finetrace drift all --out drift (on the bundled tiny world), or: finetrace drift check model=... data=..."


def add(app: typer.Typer) -> None:
    app.command("drift", epilog=EXAMPLE)(drift)


def drift(
    phase: Annotated[
        str,
        typer.Argument(
            help="check (is everything there?), scores, groups, train, analyze, or all.", show_default=False
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="recipe=NAME and key=value, as for `finetrace train`: model=..., data=FILE, max_steps=100, snip.top_k=0.01, "
            "set_diff.p=0.1, drift.every=10. Without a model: the bundled tiny world.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for neuron_groups/, finetuned_models/ and results/.")
    ] = Path("finetrace-drift"),
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what passes: trainings that run. Else inside --out.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many fine-tunes, which differ in their seed alone.")] = 5,
    samples: Annotated[int, typer.Option(help="At most so many rows of each calibration set.")] = 128,
    safety_set: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of chats: requests that the base refuses, and its refusals.", show_default=False
        ),
    ] = None,
    utility_set: Annotated[
        Path | None, typer.Option(help="JSONL of chats: ordinary requests, answered.", show_default=False)
    ] = None,
    placebo_set: Annotated[
        Path | None, typer.Option(help="JSONL of chats: one narrow harmless kind.", show_default=False)
    ] = None,
    config_dir: Annotated[
        Path | None,
        typer.Option(help="A folder with recipes of your own, found by name.", show_default=False),
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Why flagged data is trained on; kept with the fine-tunes.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Do the weights that safety rests on move more than weights like them? Killed or stopped, the same command goes on."""
    from finetrace.api.drift import plan

    given = {"safety": safety_set, "utility": utility_set, "placebo": placebo_set}
    experiment = plan(
        settings or (),
        out=out,
        scratch=scratch,
        seeds=seeds,
        sets={name: path for name, path in given.items() if path is not None},
        samples=samples,
        device=device,
        reason=reason,
        config_dir=config_dir,
    )
    if experiment.bundled:
        from finetrace.cli.audit import one_thread

        one_thread()
    raise typer.Exit(_check(experiment) if phase == "check" else _run(experiment, phase))


def _check(experiment: Experiment) -> int:
    """Says what is there and what is not; 2 if something is not."""
    from finetrace.api.drift import check

    found = check(experiment)
    for one in found:
        typer.echo(f"{'ok     ' if one.fine else 'PROBLEM'} {one.name}: {one.text}")
    return 0 if all(one.fine for one in found) else 2


def _run(experiment: Experiment, phase: str) -> int:
    from finetrace.api.drift import run
    from finetrace.finetune.progress import bar

    report = run(experiment, phase, tell=_say, progress=bar())
    if report is not None:
        typer.echo(report.read_text(encoding="utf-8"), nl=False)
        typer.echo(
            f"\nFigures: {report.parent / 'figures'}; all numbers: {report.parent / 'statistical_results.json'}"
        )
    return 0


def _say(line: str) -> None:
    typer.echo(line, err=True)
