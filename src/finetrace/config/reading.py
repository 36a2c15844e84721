"""YAML as plain values only: no object tags, no anchors, no interpolation, nothing looked up anywhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent

from finetrace.core.errors import BadInput

__all__ = ["LARGEST", "flat", "plain", "read_yaml"]

LARGEST = 1 << 16
"""Characters: a recipe has some forty lines, and a parser should not be given a book."""


class _Plain(yaml.SafeLoader):
    """Standard tags only, each key once, and no alias: an alias of an alias grows without end when it is written out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(AliasEvent):
            event = self.get_event()
            raise ComposerError(None, None, "an alias (*) is not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key, (marked, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise ConstructorError(None, None, f"'{key}' is given twice", marked.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str, largest: int = LARGEST) -> dict[str, Any]:
    """The mapping that a YAML text holds; an empty text is an empty one. where: how errors call the text. largest: in
    characters."""
    if len(text) > largest:
        raise BadInput(f"{where} has {len(text):,} characters; it may have {largest:,}.")
    try:
        loader = _Plain(text)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise BadInput(
            f"{where}{line} is not YAML that can be read: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise BadInput(
            f"{where} is not YAML that can be read: {' '.join(str(error).split())[:200]}"
        ) from None
    except (RecursionError, ValueError) as error:  # nesting without end; a date or a number that is none
        raise BadInput(f"{where} is not YAML that can be read: {str(error)[:80]}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInput(
            f"{where} holds a {type(found).__name__}; it should hold settings, one `key: value` a line."
        )
    return {str(key): value for key, value in found.items()}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat({str(k): v for k, v in value.items()}, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> str | None:
    """What is wrong with a value as a value, whatever its setting's type is; None if nothing is."""
    if isinstance(value, list):
        return next((wrong for wrong in map(plain, value) if wrong), None)
    if isinstance(value, str):
        if "${" in value:
            return "holds '${', and nothing is looked up here: write the value itself"
        if value == "???":
            return "is '???': give a value"
        return None
    if value is None or isinstance(value, bool | int | float):
        return None
    return f"is a {type(value).__name__}, which no setting takes"
