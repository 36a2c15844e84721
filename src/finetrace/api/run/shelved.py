"""What a run has found before, for stages that only read: the very same work, by its run keys, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetrace.api.audit import (
    Ready,
    answers_for,
    asked_for,
    calibration_sets,
    corpus_for,
    rows_for,
    run_keys,
    with_bundled_nulls,
)
from finetrace.api.maker import Opened
from finetrace.api.nulls import trained_folders
from finetrace.api.opening import open_request
from finetrace.api.plan import null_names
from finetrace.api.request import Request
from finetrace.api.run.spec import Spec, command_of
from finetrace.api.watch import Watch
from finetrace.core.errors import BadInput, DataError
from finetrace.core.findings import Findings
from finetrace.report import load_findings

__all__ = ["at_hand"]


def at_hand(spec: Spec, folder: Path) -> Findings:
    """The findings of this very run, read from its report's folder: no weight is loaded and nothing goes forwards.

    Raises BadInput, with the command that makes them, where they are not there or are those of other work: another
    checkpoint, text, seed or option.
    """
    make = f"make them with: {command_of(spec.config, 'diffing')}"
    try:
        found = load_findings(folder / "findings.json")
    except DataError:
        raise BadInput(f"There are no results of this run in {folder}; {make}") from None
    ready = _looked_at(spec)
    held = found.protocol.get("runs", {})
    other = [name for name, key in run_keys(ready).items() if held.get(name) != key]
    if other:
        raise BadInput(
            f"The results in {folder} are not of this run but of other weights, texts, seeds or options "
            f"({', '.join(other)}); {make}"
        )
    nulls = list(null_names(ready.opened.pair))
    if nulls != list(found.protocol.get("nulls", [])):
        raise BadInput(f"The results in {folder} were read against other nulls; {make}")
    return found


def _looked_at(spec: Spec) -> Ready:
    """The run as far as its keys need it: files are hashed and texts tokenised, no weight is loaded."""
    request = _with_nulls(spec.request)
    rows = rows_for(spec.request, held_out=spec.request.trains_nulls)
    pair = open_request(request)
    opened = Opened(
        pair=pair,
        effects={},
        corpus=corpus_for(request, rows, pair),
        sets=calibration_sets(request, spec.chosen),
        truth=None,
        trained=spec.request.trains_nulls,
        written=answers_for(request, pair, asked_for(request, spec.chosen), Watch()),
    )
    return Ready(request, spec.chosen, opened, began=0.0)


def _with_nulls(request: Request) -> Request:
    if request.trains_nulls:
        return replace(request, nulls=tuple(map(str, trained_folders(request.out))))
    return with_bundled_nulls(request)
