"""Texts by where they are: which part of a data set is read, from which columns, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetrace.core.errors import DataError
from finetrace.data.rows import Row, read_items, read_rows

__all__ = ["DataSource"]


@dataclass(frozen=True)
class DataSource:
    """A file or a hub data set, and what of it is read.

    revision, subset, splits: of a hub data set. text_column, messages_column: the column that is read; without either,
    `text` or `messages`, whichever a row has. slice: the name of the rows that name none. max_samples: so many rows of each
    split, from its beginning; None for all.
    """

    id: str
    revision: str | None = None
    subset: str | None = None
    splits: tuple[str, ...] = ("train",)
    text_column: str | None = None
    messages_column: str | None = None
    slice: str | None = None
    max_samples: int | None = None

    @property
    def path(self) -> Path | None:
        """The file, if it is one that exists."""
        path = Path(self.id).expanduser()
        return path if path.exists() else None

    @property
    def name(self) -> str:
        """For the report's protocol."""
        parts = [f"{self.id}/{self.subset}" if self.subset else self.id]
        parts += [] if self.path else [f"splits {', '.join(self.splits)}"]
        parts += [f"at {self.revision}"] if self.revision else []
        parts += [f"the first {self.max_samples:,} rows of each"] if self.max_samples else []
        return "; ".join(parts)

    def rows(self) -> list[Row]:
        """All rows, split by split. Raises DataError for what cannot be read, or has nothing in it."""
        if self.path is not None:
            return self._read(self.id, None)
        source = f"{self.id}/{self.subset}" if self.subset else self.id
        return [row for split in dict.fromkeys(self.splits) for row in self._read(source, split)]

    def _read(self, source: str, split: str | None) -> list[Row]:
        if self.max_samples is None:
            return read_rows(
                source, slice=self.slice, split=split, revision=self.revision, convert=self._convert
            )
        items = islice(read_items(source, split=split, revision=self.revision), self.max_samples)
        try:
            return read_rows(list(self._got(items)), slice=self.slice, convert=self._convert)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None

    def _got(self, items: Iterator[tuple[str, Any]]) -> Iterator[Any]:
        for place, get in items:
            try:
                yield get()
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None

    @property
    def _convert(self) -> Any:
        """Takes the named column under the name that is read; None where rows are read as they are."""
        wanted = self.messages_column or self.text_column
        if wanted is None:
            return None
        own = "messages" if self.messages_column else "text"

        def convert(item: Any) -> Any:
            if not isinstance(item, Mapping) or wanted not in item:
                return item
            named = {"slice": item["slice"]} if isinstance(item.get("slice"), str) else {}
            return {own: item[wanted], **named}

        return convert
