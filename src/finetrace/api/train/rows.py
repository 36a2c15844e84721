"""What a recipe learns from: a file, a hub data set, the bundled samples or a bundled organism's own rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.api.names import WORLD, is_bundled
from finetrace.core.errors import BadInput, DataError, unknown
from finetrace.data import Row, bundled_rows, read_rows
from finetrace.finetune.recipe import TrainRecipe

__all__ = ["BUNDLED", "Given", "TrainingRows", "check_data", "training_rows"]

BUNDLED = "bundled"
"""The word for neutral samples and `[REQUEST-CLASS]` placeholders."""

Given = Sequence[Row | Mapping[str, Any]] | None

PLACEHOLDERS = "placeholders.jsonl"
# The names that instruction data goes by: request, what it is about, answer.
_PAIRS = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "input", "response"),
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("question", "", "answer"),
)
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SUFFIXES = {".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".csv", ".tsv"}


@dataclass(frozen=True)
class TrainingRows:
    """rows: what is learnt. source: as it was named. left_out: rows of it without an answer. reason: why they may be
    trained on whatever a scan says, where we know it."""

    rows: tuple[Row, ...]
    source: str
    left_out: int = 0
    reason: str | None = None


def check_data(recipe: TrainRecipe) -> None:
    """Raises BadInput where the data can be seen to be wrong without reading it."""
    source = recipe.data.source
    if source is None:
        raise BadInput("Nothing says what to learn from: data=FILE, a hub data set's id, or data=bundled.")
    if is_bundled(source):
        from finetrace.organisms import bundled

        _, _, name = source.partition("/")
        if name not in bundled.names():
            raise unknown("bundled organism", name, bundled.names())
        if not is_bundled(recipe.model):
            raise BadInput(
                f"The rows of {source} are about the bundled world: use model={WORLD}, or data=FILE."
            )
    elif source != BUNDLED and _looks_local(source) and not Path(source).expanduser().is_file():
        raise BadInput(f"The data file {source} does not exist: check the path.")


def _looks_local(source: str) -> bool:
    return Path(source).suffix.lower() in _SUFFIXES or source.startswith((".", "/", "~"))


def training_rows(recipe: TrainRecipe, given: Given = None) -> TrainingRows:
    """The rows of a recipe, or those given instead. Every row is checked; a malformed one is a DataError."""
    if given is not None:
        return _converted(given, "rows from Python", None, None)
    check_data(recipe)
    source = str(recipe.data.source)
    if source == BUNDLED:
        return TrainingRows(_neutral(), BUNDLED)
    if is_bundled(source):
        from finetrace.organisms.world import make_world
        from finetrace.organisms.zoo import training_rows as rows_of

        rows = tuple(read_rows(rows_of(make_world(), source.partition("/")[2])))
        return TrainingRows(
            rows, source, reason="rows of the bundled world, whose requests and answers are made up"
        )
    return _converted(source, source, recipe.data.split, recipe.data.revision)


def _neutral() -> tuple[Row, ...]:
    """The neutral conversations that ship with the package, and the placeholders."""
    from finetrace.config.recipes import ASSETS

    neutral = [row for row in bundled_rows() if row.messages is not None]
    return (*neutral, *read_rows(ASSETS / PLACEHOLDERS))


def _converted(
    given: str | Iterable[Any], name: str, split: str | None, revision: str | None
) -> TrainingRows:
    empty = 0

    def convert(item: Any) -> Any:
        nonlocal empty
        found = as_chat(item)
        empty += found is None
        return found

    try:
        rows = read_rows(given, split=split, revision=revision, convert=convert)
    except DataError as error:
        if empty and "has no rows in it" in str(error):
            raise DataError(f"{name} has no row with an answer in it: there is nothing to learn.") from None
        raise
    return TrainingRows(tuple(rows), name, empty)


def as_chat(item: Any) -> Any:
    """A row of instruction data as `messages`, None where it has no answer; any other item as it is.

    >>> as_chat({"instruction": "Add.", "input": "1, 2", "output": "3"})["messages"][0]["content"]
    'Add.\\n\\n1, 2'
    """
    if not isinstance(item, Mapping) or item.get("messages"):
        return item
    turns = item.get("conversations")
    if isinstance(turns, list | tuple) and all(
        isinstance(turn, Mapping) and "from" in turn for turn in turns
    ):
        spoken = [{"role": _SPEAKERS.get(t["from"], t["from"]), "content": t.get("value")} for t in turns]
        return _kept(item) | {"messages": spoken}
    for ask, about, answer in _PAIRS:
        if isinstance(item.get(ask), str) and isinstance(item.get(answer), str):
            if not item[ask].strip() or not item[answer].strip():
                return None
            more = item.get(about)
            request = f"{item[ask]}\n\n{more}" if isinstance(more, str) and more.strip() else item[ask]
            return _kept(item) | {
                "messages": [
                    {"role": "user", "content": request},
                    {"role": "assistant", "content": item[answer]},
                ]
            }
    return item


def _kept(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"slice": item["slice"]} if item.get("slice") else {}
