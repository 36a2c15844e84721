"""The verbs, and what an error ends with. No torch here: `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from finetrace.cli import (
    add_organism,
    ask,
    audit,
    bench,
    clean,
    compare,
    demo,
    doctor,
    drift,
    imports,
    listing,
    organisms,
    report,
    run,
    train,
)
from finetrace.core.errors import ConfigErrors, FinetraceError

app = typer.Typer(
    name="finetrace",
    help="What fine-tuning changed in a language model, and whether it cost the model its safety.",
    epilog="Start with: finetrace demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
demo.add(app)
audit.add(app)
ask.add(app)
listing.add(app)
report.add(app)
doctor.add(app)
organisms.add(app)
bench.add(app)
train.add(app)
drift.add(app)
imports.add(app)
run.add(app)
add_organism.add(app)
compare.add(app)
clean.add(app)


def main() -> None:
    """Runs the command line. Exit codes: 0 fine, 1 a bug of ours, 2 bad input, 3 a rule broke, 4 undecided."""
    try:
        app()
    except ConfigErrors as error:
        for problem in error.problems:
            _say(problem)
        sys.exit(error.exit_code)
    except FinetraceError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on where this one was.")
        sys.exit(130)


def _say(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    print(f"finetrace: {' '.join(message.split())}", file=sys.stderr)
