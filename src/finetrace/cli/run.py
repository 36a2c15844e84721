"""`finetrace run`: organisms, models and methods by name, in one run or a sweep of many."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetrace.core.errors import BadInput, FinetraceError

if TYPE_CHECKING:
    from finetrace.api.run.stages import Done
    from finetrace.config.tree import RunConfig

EXAMPLE = "Example: finetrace run organism=refusal_erosion model=tinyworld diffing/method=kl seed=3"
JOB = "job"
SLURM = "slurm"

Runs = Sequence[tuple["RunConfig", tuple[str, ...]]]


def add(app: typer.Typer) -> None:
    app.command("run", epilog=EXAMPLE)(run)


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="organism=..., model=..., organism_variant=..., diffing/method=..., data=..., infrastructure=..., "
            "pipeline.mode=full|preprocessing|diffing|evaluation|no_evaluation, and key=value of everything else: "
            "diffing.method.OPTION, data.id=FILE, nulls=[train], seed=3, out=FOLDER. See `finetrace list organisms`.",
            show_default=False,
        ),
    ] = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Run all combinations of values given as a,b,c.")
    ] = False,
    config_dir: Annotated[
        Path | None,
        typer.Option(
            "--config-dir",
            "-cd",
            help="A folder with organism/, model/, ... of your own.",
            show_default=False,
        ),
    ] = None,
    cfg: Annotated[
        str | None,
        typer.Option(help="job: print the whole configuration as YAML, and stop.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost, and stop.")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit 3 if this breaks, 4 if it is undecided, e.g. 'refusal_drop>5%'."),
    ] = None,
    allow_undecided: Annotated[
        bool, typer.Option(help="Exit 0 where a rule is undecided or not measured.")
    ] = False,
) -> None:
    """Diff an organism of the catalogue, or many of them, by name.

    Without words: cake_bake on its first model, diff_mining. Killed or stopped, the same command goes on where it was.
    Exit codes: 0 all rules passed, 3 one broke, 4 one is undecided or was not measured, 2 bad input.
    """
    from finetrace.config.run import as_yaml, compose_runs

    if cfg is not None and cfg != JOB:
        raise BadInput(f"--cfg {cfg} is not known: --cfg {JOB} prints the run's configuration.")
    found = compose_runs(words or [], config_dir, multirun)
    runs = tuple((_with_rules(config, tuple(fail_on or ())), said) for config, said in found)
    if cfg is not None:
        typer.echo("\n---\n".join(as_yaml(config).rstrip() for config, _ in runs))
    elif dry_run:
        _show_costs(runs)
    elif any(config.infrastructure.kind == SLURM for config, _ in runs):
        options = ["--multirun"] * multirun + ["--allow-undecided"] * allow_undecided
        options += [part for rule in fail_on or () for part in ("--fail-on", rule)]
        options += [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]
        _submit(runs, [*(words or []), *options])
    else:
        raise typer.Exit(_perform(runs, allow_undecided))


def _with_rules(config: RunConfig, rules: tuple[str, ...]) -> RunConfig:
    return replace(config, rules=tuple(dict.fromkeys((*config.rules, *rules))))


def _submit(runs: Runs, arguments: Sequence[str]) -> None:
    """As a job of SLURM: all of it, after a look at each run."""
    from finetrace.api.run.slurm import submit
    from finetrace.api.run.spec import spec_for

    for config, _ in runs:
        spec_for(config)
    typer.echo(str(submit(runs[0][0], arguments)))


def _perform(runs: Runs, allow_undecided: bool) -> int:
    """Runs all jobs, told of each; the exit code is the worst of them."""
    _prepare_threads(runs)
    if len(runs) > 1:
        return _sweep(runs, allow_undecided)
    from finetrace.api.run.stages import perform
    from finetrace.cli.audit import command_line
    from finetrace.cli.progress import Bars

    config, _ = runs[0]
    try:
        done = perform(config, Bars(), command_line(), allow_undecided=allow_undecided)
    except FinetraceError:
        if config.debug:
            traceback.print_exc(file=sys.stderr)
        raise
    return _show(done, allow_undecided)


def _sweep(runs: Runs, allow_undecided: bool) -> int:
    """Every job, told of when it is done; a table of them all at the end."""
    from rich.console import Console

    from finetrace.api.run.sweep import perform_all, worst_code
    from finetrace.cli.audit import command_line
    from finetrace.cli.progress import Bars
    from finetrace.cli.sweep import table

    ran = perform_all(
        runs,
        Bars,
        command_line(),
        allow_undecided=allow_undecided,
        show=lambda done: _told(done, allow_undecided),
    )
    Console().print(table(ran))
    return worst_code(ran)


def _told(done: Done, allow_undecided: bool) -> None:
    """Where one job's report is, with the gate's files beside it."""
    from finetrace.cli.gate import Gate

    if done.findings is not None:
        for _ in Gate(done.config.rules, allow_undecided).write(done.findings, done.folder):
            pass
        typer.echo(f"Report: {done.folder / 'report.html'}")


def _prepare_threads(runs: Runs) -> None:
    from finetrace.api.names import is_bundled

    if "OMP_NUM_THREADS" not in os.environ and all(is_bundled(config.model.model_id) for config, _ in runs):
        from finetrace.cli.audit import one_thread

        one_thread()


def _show(done: Done, allow_undecided: bool) -> int:
    """Prints what was found and where it is; the exit code that the rules give."""
    from rich.console import Console

    from finetrace.api.rules import exit_code
    from finetrace.cli.gate import Gate
    from finetrace.report import summary

    console = Console()

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if done.findings is None:
        line("Nothing was diffed: go on with pipeline.mode=diffing.")
        return 0
    for part in summary(done.findings):
        console.print(part)
    if done.graded is not None:
        line(f"Evaluation: {done.folder / 'evaluation.json'}")
    gate = Gate(done.config.rules, allow_undecided)
    for name, file in (*gate.write(done.findings, done.folder), ("Report", done.folder / "report.html")):
        line(f"{name}: {file}")
    return exit_code(done.findings.rules)


def _show_costs(runs: Runs) -> None:
    """What every job would cost, and all of them together."""
    from finetrace.api.run.cost import cost_of, total
    from finetrace.api.run.spec import spec_for

    _prepare_threads(runs)
    costs = []
    for config, words in runs:
        if len(runs) > 1:
            typer.echo(f"# {' '.join(words)}")
        cost = cost_of(spec_for(config))
        costs.append(cost)
        for name, text in cost.lines():
            typer.echo(f"{name:>16}: {text}")
    if len(runs) > 1:
        typer.echo(f"# all {len(runs)} runs")
        for name, text in total(costs).lines():
            typer.echo(f"{name:>16}: {text}")
    typer.echo("Nothing was run and nothing was written.")
