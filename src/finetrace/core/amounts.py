"""Amounts of time and of bytes, in words."""

from __future__ import annotations

__all__ = ["duration", "size_in_words"]

_MIB = 1 << 20


def duration(seconds: float) -> str:
    """To about two digits.

    >>> duration(89), duration(300), duration(9000), duration(259200)
    ('89 s', '5 min', '2.5 h', '3.0 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def size_in_words(count: float) -> str:
    """Bytes, in MiB or, from a quarter of one, GiB.

    >>> size_in_words(3 << 20), size_in_words(1 << 28)
    ('3.0 MiB', '0.25 GiB')
    """
    return f"{count / (_MIB << 10):.2f} GiB" if count >= _MIB << 8 else f"{count / _MIB:.1f} MiB"
