"""What `diff` gives back: every method's readings, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetrace.core.errors import unknown
from finetrace.core.findings import Finding, Findings


@dataclass(frozen=True)
class Found(Mapping[str, Finding]):
    """An audit's findings by method name: `found["kl"].numbers["kl_mean"].value`.

    results: method -> contrast label ("pair", "self", "null:<name>", "dose:<name>") -> that method's Result.
    """

    findings: Findings
    folder: Path
    results: Mapping[str, Mapping[str, Any]] = field(repr=False)

    def __getitem__(self, name: str) -> Finding:
        if name not in self.findings.findings:
            raise KeyError(str(unknown("method in this audit", name, self.findings.findings)))
        return self.findings.findings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.findings.findings)

    def __len__(self) -> int:
        return len(self.findings.findings)

    @property
    def change(self) -> str:
        """beyond-nulls, within-nulls or undecided."""
        return self.findings.change

    @property
    def safety(self) -> str:
        """regressed, within-margin, undecided or not-measured."""
        return self.findings.safety

    def report(self, path: str | Path) -> Path:
        """Writes the report as one self-contained HTML file."""
        from finetrace.report import write_html

        write_html(self.findings, Path(path))
        return Path(path)

    def _repr_html_(self) -> str:
        from finetrace.report import notebook_html

        return notebook_html(self.findings)
