"""`python -m finetrace.config.generate`: the group `diffing/method`, one YAML file from each method's own dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from finetrace.config.groups import METHOD
from finetrace.config.recipes import SHIPPED
from finetrace.core.card import GROUP, Method, discover

__all__ = ["method_files", "method_yaml"]


def method_yaml(card: Method) -> str:
    """The file of one method: what it is, what its options mean, and their defaults."""
    summary = "".join(f"# {line}\n" for line in _lines(card.summary))
    about = "".join(f"# {line}".rstrip() + "\n" for line in _lines(card.config.__doc__ or ""))
    values = {"name": card.name, **{key: _plain(value) for key, value in vars(card.config()).items()}}
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    made = "# Made by `python -m finetrace.config.generate`; do not edit.\n"
    return f"{made}{summary}#\n{about}{body}"


def method_files() -> dict[Path, str]:
    """Path -> text of every file of the group; methods that are installed from elsewhere bring their own."""
    cards, _ = discover()
    ours = (card for card in cards.values() if card.home.startswith(f"{GROUP}."))
    return {SHIPPED / METHOD / f"{card.name}.yaml": method_yaml(card) for card in ours}


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.strip().splitlines()]
    return [line for line, above in zip(lines, ["x", *lines], strict=False) if line or above]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        raise TypeError("an option is a plain value")
    return list(value) if isinstance(value, tuple) else value


def _main() -> None:
    wanted = method_files()
    for path in set((SHIPPED / METHOD).glob("*.yaml")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _main()
