"""How long work tells what it is doing: the command line draws a bar, Python stays quiet."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Watch:
    """Silent by default. notes: every line that was told, kept for the report's protocol."""

    notes: list[str] = field(default_factory=list)

    def begin(self, what: str, total: int, unit: str = "tokens") -> None:
        """Work of `total` units starts."""

    def advance(self, units: int) -> None:
        """That many units more are done."""

    def end(self) -> None:
        """The work is over."""

    def tell(self, line: str) -> None:
        self.notes.append(line)
