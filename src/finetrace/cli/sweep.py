"""What a sweep ends with: one line a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from finetrace.api.run.sweep import Ran

__all__ = ["table"]

_NONE = "-"


def table(ran: Sequence[Ran]) -> Table:
    """The runs in the order in which they were typed. Seconds: each run's share of its pass. Verdicts are never cut, however
    narrow the terminal; where a report is was told when its run was done."""
    models = len({one.config.model.name for one in ran}) > 1
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("organism", "variant", *(["model"] if models else []), "method"):
        made.add_column(head, overflow="fold")
    for head in ("change", "safety"):
        made.add_column(head, no_wrap=True)
    made.add_column("seconds", justify="right", no_wrap=True)
    for one in ran:
        config = one.config
        names = [config.organism.name, config.organism_variant, *([config.model.name] if models else [])]
        cells = [
            *names,
            " ".join(config.diffing.methods),
            *_found(one),
            f"{one.seconds:,.1f}",
        ]
        made.add_row(*(Text(cell) for cell in cells))
    return made


def _found(one: Ran) -> tuple[str, str]:
    """Change and safety; of a run that failed, only that."""
    if one.problem is not None:
        return "failed", _NONE
    return one.change or _NONE, one.safety or _NONE
