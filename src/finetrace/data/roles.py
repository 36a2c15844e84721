"""Who said a token: the role codes that every per-role figure uses."""

from __future__ import annotations

__all__ = ["ASSISTANT", "ROLES", "SYSTEM", "TEMPLATE", "TEXT", "USER", "role_code"]

TEMPLATE = 0  # what the chat template or the tokenizer added: BOS, role headers, end of turn
TEXT = 1  # a plain text
SYSTEM = 2
USER = 3
ASSISTANT = 4

ROLES: tuple[str, ...] = ("template", "text", "system", "user", "assistant")


def role_code(name: str) -> int:
    """The code of a role name; ROLES[role_code(name)] == name."""
    return ROLES.index(name)
