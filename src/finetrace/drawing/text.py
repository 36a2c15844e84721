"""Text from models and datasets made visible: what cannot be seen, or reorders what can, is shown as its code point. And
figures as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

# Printable to Python, but invisible: fillers, the blank braille cell, and variation selectors, which can carry
# hidden messages. The emoji selector U+FE0F stays, because nearly every emoji has one.
_SNEAKY = re.compile("[\u034f\u115f\u1160\u2800\u3164\uffa0\ufe00-\ufe0e\U000e0100-\U000e01ef]")
_PLAIN_SPACES = "\n\t\u00a0\u2002\u2003\u2009\u202f\u3000"
NO_DATA = "no data"
_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


class Part(NamedTuple):
    """A piece of a token. mark: it stands for whitespace or an invisible character, and is not the token's own text."""

    text: str
    mark: bool


def _hidden(char: str) -> bool:
    return not char.isprintable() or _SNEAKY.match(char) is not None


def _code_point(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def visible(text: str) -> str:
    """`text` with control, bidirectional, zero-width, surrogate and private-use characters as ⟨U+XXXX⟩.

    Newlines, tabs and ordinary spaces stay.

    >>> visible("a\\u202eb")
    'a⟨U+202E⟩b'
    """
    if text.isprintable() and not _SNEAKY.search(text):
        return text
    return "".join(_code_point(c) if c not in _PLAIN_SPACES and _hidden(c) else c for c in text)


def one_line(text: str) -> str:
    """`visible(text)` with every run of whitespace as one space."""
    return " ".join(visible(text).split())


def token_parts(token: str) -> tuple[Part, ...]:
    """A token cut into its own text and the marks for what cannot be seen.

    Leading and trailing spaces become ␣, newlines ↵ and tabs ⇥; the empty token is ∅; anything else invisible is its
    code point.
    """
    if not token:
        return (Part("∅", True),)
    core = token.strip(" ")
    start = token.index(core) if core else len(token)
    parts: list[Part] = []
    for place, char in enumerate(token):
        edge = char == " " and not start <= place < start + len(core)
        if edge or char in "\n\t":
            part = Part(_MARKS[char], True)
        elif char != " " and _hidden(char):
            part = Part(_code_point(char), True)
        else:
            part = Part(char, False)
        if parts and parts[-1].mark == part.mark:
            parts[-1] = Part(parts[-1].text + part.text, part.mark)
        else:
            parts.append(part)
    return tuple(parts)


def visible_token(token: str) -> str:
    """A token with its whitespace shown.

    >>> visible_token(" the\\n")
    '␣the↵'
    """
    return "".join(part.text for part in token_parts(token))


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` characters, with … where it was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each as lines of even columns.

    >>> print(aligned([["a", "bc"], ["def", "g"]]))
    a    bc
    def  g
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns[:-1]]
    padded = [[cell.ljust(width) for cell in column] for column, width in zip(columns, widths, strict=False)]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*padded, columns[-1], strict=True))


def number(value: float | None) -> str:
    """Three significant digits, without needless exponents.

    >>> number(0.04213), number(12345.6), number(3.14e-05), number(None)
    ('0.0421', '12,346', '3.14e-5', 'no data')
    """
    if value is None or math.isnan(value):
        return NO_DATA
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 999.5 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def interval(low: float | None, high: float | None) -> str:
    """ "[low, high]", or nothing where there is none."""
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"
