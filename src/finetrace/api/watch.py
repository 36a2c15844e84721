"""How long work tells what it is doing: the command line draws a bar, Python stays quiet."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass
class Watch:
    """Silent by default. notes: every line that was told, kept for the report's protocol."""

    notes: list[str] = field(default_factory=list)

    def begin(self, what: str, tokens: int) -> None:
        """A pass over `tokens` tokens starts."""

    def advance(self, tokens: int) -> None:
        """That many tokens more are done."""

    def end(self) -> None:
        """The pass is over."""

    def tell(self, line: str) -> None:
        self.notes.append(line)


class Speaking(Watch):
    """Says its notes on standard error."""

    def tell(self, line: str) -> None:
        super().tell(line)
        print(line, file=sys.stderr)
