"""Which runs of a shelf are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetrace.core.errors import BadInput, unknown
from finetrace.core.shelf_index import Entry

# How a user calls the parts of a run's address; `organism` is the fine-tune's name where it is none of ours.
NAMES = {"base": "base", "model": "base", "organism": "tuned", "variant": "variant", "method": "method"}
WORDS = (*NAMES, "contrast", "key")
_AGO = re.compile(r"^(\d+)([mhdw])$")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Filter:
    """Patterns (`*`, `?`; several with commas) by address part, all of which have to fit; None lets everything through.

    base: of the base model's id or its last part, or the base itself under a name of the catalogue (`aliases`: name -> id).
    contrasts: "pair" alone unless more are asked for. protocol: dotted name -> value as text, as in the manifest.
    since: runs made at or after. text: in the folder or in the command.
    """

    base: str | None = None
    tuned: str | None = None
    variant: str | None = None
    method: str | None = None
    key: str | None = None
    contrast: str | None = "pair"
    since: datetime | None = None
    text: str | None = None
    protocol: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def keeps(self, entry: Entry) -> bool:
        """Whether the run is meant; what costs more to read is looked at last."""
        named = ((self.variant, entry.variant), (self.method, entry.method), (self.contrast, entry.contrast))
        if not all(_fits(pattern, value) for pattern, value in named):
            return False
        if not (self._of_base(entry.base) and _fits_name(self.tuned, entry.tuned)):
            return False
        if self.key is not None and not entry.key.startswith(self.key):
            return False
        if self.since is not None and not _at_or_after(entry.created, self.since):
            return False
        if self.text is not None and not self._says(entry, self.text.lower()):
            return False
        if not self.protocol:
            return True
        told = flat(entry.manifest.get("protocol") or {})
        return all(_fits(pattern, _plain(told.get(name))) for name, pattern in self.protocol.items())

    def _of_base(self, base: str) -> bool:
        known = (self.aliases.get(one) for one in (self.base or "").split(","))
        return _fits_name(self.base, base) or base in known

    def _says(self, entry: Entry, text: str) -> bool:
        return text in entry.folder.lower() or text in str(entry.manifest.get("command", "")).lower()


def _fits(pattern: str | None, value: str) -> bool:
    return pattern is None or any(fnmatchcase(value, one) for one in pattern.split(","))


def _fits_name(pattern: str | None, value: str) -> bool:
    """A hub id fits by its last part too."""
    return _fits(pattern, value) or _fits(pattern, value.rsplit("/", 1)[-1])


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested mapping as dotted names.

    >>> flat({"seed": 0, "shape": {"batch_size": 16}})
    {'seed': 0, 'shape.batch_size': 16}
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def _plain(value: Any) -> str:
    """A value as a user types it: `none`, `true`, 0, torch.float32 as float32."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value).removeprefix("torch.")


def moment(text: str) -> datetime:
    """`7d`, `12h`, `30m` or `2w` before now, or a date; dates without a zone are UTC."""
    if (ago := _AGO.match(text)) is not None:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"'{text}' is no time: write 7d, 12h, or a date such as 2026-11-01 or 2026-11-01T09:30."
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _at_or_after(created: str, since: datetime) -> bool:
    try:
        return moment(created) >= since
    except BadInput:
        return False


def filter_of(words: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> Filter:
    """A filter from `organism=...`, `seed=1` and the like; a dotted word, or one that is no part of the address, is of the
    protocol (`PROTOCOL` names the plain ones)."""
    parts: dict[str, Any] = {"aliases": aliases or {}}
    protocol: dict[str, str] = {}
    for word, value in words.items():
        if word in NAMES:
            parts[NAMES[word]] = value
        elif word in WORDS:
            parts[word] = value
        elif "." in word or word in PROTOCOL:
            protocol[PROTOCOL.get(word, word)] = value
        else:
            raise unknown("filter", word, [*WORDS, *PROTOCOL])
    return Filter(**parts, protocol=protocol)


# What of a run's protocol can be asked for by one word, and where it stands there.
PROTOCOL = {
    "seed": "seed",
    "dtype": "dtype",
    "device": "device",
    "context": "context",
    "corpus": "corpus",
    "version": "version",
    "quantization": "quantization",
    "batch_size": "shape.batch_size",
}


def shelf_root(folder: Path) -> Path:
    """The shelf in a folder that someone names: `runs` inside a folder of results, or the folder itself."""
    inside = folder / "runs"
    return inside if inside.is_dir() else folder
