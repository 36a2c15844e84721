"""Texts of restricted slices taken out of findings, once, before anything is written: rates stay, words go."""

from __future__ import annotations

import re
from dataclasses import replace

from finetrace.core.findings import Finding, Findings
from finetrace.core.page import Block, Cell, Figure, Page, Passage, Table

HIDDEN_CELL = "[redacted]"
HIDDEN_TOKEN = "▪"
# What a summary quotes: tokens, or texts.
_QUOTED = re.compile("“[^”]*”")
# Columns that hold what somebody wrote: a column is one if its name has any of these words in it.
_TEXT_WORDS = frozenset(
    [
        "text",
        "texts",
        "passage",
        "passages",
        "prompt",
        "prompts",
        "answer",
        "answers",
        "response",
        "responses",
        "completion",
        "context",
        "reference",
        "token",
        "tokens",
        "base",
        "tuned",
    ]
)


def redact(findings: Findings) -> Findings:
    """`findings` without the words of the slices in `findings.redacted`.

    Passages keep their values, one mark a token. Tables with a column `slice` keep their rows; in those of a redacted
    slice, strings under text, passage, prompt, answer, token and the like become "[redacted]". Tables of tokens of a
    redacted slice, or of all slices together, keep their numbers and lose their words; figures labelled with words go, and
    so does what a summary quotes.
    """
    if not findings.redacted:
        return findings
    hidden = frozenset(findings.redacted)
    kept = {name: _finding(finding, hidden) for name, finding in findings.findings.items()}
    return replace(findings, findings=kept)


def _finding(finding: Finding, hidden: frozenset[str]) -> Finding:
    seen = frozenset(finding.slices) - hidden
    shown = [block for block in finding.page.blocks if not (isinstance(block, Figure) and block.spells)]
    blocks = tuple(_block(block, hidden, frozenset(finding.slices), seen) for block in shown)
    summary = _QUOTED.sub(HIDDEN_CELL, finding.page.summary)
    page: Page = replace(finding.page, summary=summary, blocks=blocks)
    return replace(finding, page=page)


def _block(block: Block, hidden: frozenset[str], slices: frozenset[str], seen: frozenset[str]) -> Block:
    if isinstance(block, Passage) and block.slice in hidden:
        # Titles and notes may quote the text, so they go too.
        title = f"redacted: text of slice {block.slice} (rates only); --reveal shows it"
        return replace(block, title=title, note="", tokens=(HIDDEN_TOKEN,) * len(block.tokens))
    if isinstance(block, Table):
        return _table(block, seen) if _has_slices(block) else _tokens(block, slices, seen)
    return block


def _has_slices(table: Table) -> bool:
    return "slice" in [column.lower() for column in table.columns]


def _table(table: Table, seen: frozenset[str]) -> Table:
    names = [column.lower() for column in table.columns]
    where = names.index("slice")
    text = {i for i, name in enumerate(names) if _TEXT_WORDS & set(re.split(r"[^a-z]+", name))}

    def row_without_text(row: tuple[Cell, ...]) -> tuple[Cell, ...]:
        if row[where] in seen:
            return row
        return tuple(HIDDEN_CELL if i in text and isinstance(c, str) else c for i, c in enumerate(row))

    return replace(table, rows=tuple(row_without_text(row) for row in table.rows))


def _tokens(table: Table, slices: frozenset[str], seen: frozenset[str]) -> Table:
    """A table of one slice, or of all together, whose words speak of the texts: it stays if it is of a slice that is not
    hidden (its key ends with the slice's name), and keeps its numbers otherwise."""
    # The longest name: "promoted_restricted_text" is of "restricted_text", not of "text".
    of = max((name for name in slices if table.key.endswith(f"_{name}")), key=len, default=None)
    if of in seen:
        return table
    ids = {i for i, name in enumerate(table.columns) if name == "token_id"}
    rows = tuple(
        tuple(HIDDEN_CELL if i in ids or isinstance(c, str) else c for i, c in enumerate(row))
        for row in table.rows
    )
    return replace(table, rows=rows)
