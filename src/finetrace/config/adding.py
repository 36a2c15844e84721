"""An organism of one's own, in one file: a new one, or a variant more; composed before anything is written."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetrace.config.catalogue import model_named, models
from finetrace.config.checks import DTYPES, NAME
from finetrace.config.groups import names
from finetrace.config.reading import read_yaml
from finetrace.config.run import gather_run
from finetrace.core.errors import BadInput, ConfigErrors, nearest
from finetrace.core.files import read_json, write_text

__all__ = ["Added", "Addition", "add"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WITH_SUBFOLDER = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){1,6}")
_RESERVED = ("auto",)
_LARGEST = 1 << 20
_WIDTH = 116
_GROUPS = ("organism", "model")


@dataclass(frozen=True)
class Addition:
    """What a user says of a fine-tune. base: a model of the catalogue, a hub id or a folder. adapter or checkpoint: a hub
    id (`org/repo`, an adapter's with a subfolder after it) or a folder. truth: what was planted, in words. data: what it
    was trained on, a hub id or a file; column: its texts. control: built to change nothing. None leaves a field as it is.
    """

    name: str
    base: str
    adapter: str | None = None
    checkpoint: str | None = None
    variant: str = "default"
    revision: str | None = None
    type: str | None = None
    truth: str | None = None
    data: str | None = None
    column: str | None = None
    control: bool = False


@dataclass(frozen=True)
class Added:
    """path: the organism's file. model: its base's name; model_path: the file that was written for it, if one was. words:
    what a run is asked for with. notes: what a user should know of it."""

    path: Path
    model: str
    model_path: Path | None
    words: tuple[str, ...]
    notes: tuple[str, ...] = ()


def add(given: Addition, config_dir: Path, *, force: bool = False) -> Added:
    """Writes `config_dir/organism/NAME.yaml`, and `config_dir/model/...yaml` for a base that is not known.

    A file that is there keeps what it has, comments too, and gets the variant. force: a variant of that name, or a truth,
    type or data that differ, are replaced. Raises ConfigErrors with every problem; then nothing was written.
    """
    config_dir = config_dir.expanduser()
    problems = [*_name_problems(given), *_source_problems(given)]
    if config_dir.exists() and not config_dir.is_dir():
        problems.append(f"--config-dir {config_dir} is a file; name a folder.")
    model, model_values = _base(given.base, config_dir, problems)
    if problems:
        raise ConfigErrors(problems)
    path = config_dir / "organism" / f"{given.name}.yaml"
    text, notes = _organism(given, model, path, force)
    written = {path: text}
    if model_values is not None:
        written[config_dir / "model" / f"{model}.yaml"] = _dumped(model_values)
    words = _words(given, model)
    _compose(written, words, config_dir)
    for where, what in reversed(
        written.items()
    ):  # the model first: an organism never names one that is not there
        write_text(where, what)
    model_path = next((where for where in written if where != path), None)
    return Added(path, model, model_path, words, tuple(notes))


def _words(given: Addition, model: str) -> tuple[str, ...]:
    variant = () if given.variant == "default" else (f"organism_variant={given.variant}",)
    return (f"organism={given.name}", f"model={model}", *variant)


def _name_problems(given: Addition) -> list[str]:
    return [
        f"{what} '{name}' cannot be used: letters, digits and _ . + -, beginning with a letter or digit, and no word that "
        "means something else (auto, null, true, a number)."
        for what, name in (("The name", given.name), ("The variant", given.variant))
        if not _is_name(name)
    ]


def _is_name(name: str) -> bool:
    if not NAME.fullmatch(name) or ".." in name or name.casefold() in _RESERVED:
        return False
    # What YAML or a run's words read as a number, a date, a truth value or nothing would come back as that.
    return isinstance(yaml.safe_load(name), str) and not _is_number(name)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _source_problems(given: Addition) -> list[str]:
    found = []
    if (given.adapter is None) == (given.checkpoint is None):
        found.append("Give --adapter, or --checkpoint where all weights were trained: one of them.")
    for what, source, config in (
        ("adapter", given.adapter, "adapter_config.json"),
        ("checkpoint", given.checkpoint, "config.json"),
    ):
        if source is None:
            continue
        folder = _folder(source)
        if folder is not None and not (folder / config).is_file():
            found.append(f"The {what} {source} holds no {config}: is it the right folder?")
        elif folder is None and not _is_id(source, _WITH_SUBFOLDER):
            found.append(
                f"The {what} {source} is no folder here and no hub id (org/repo or org/repo/subfolder)."
            )
    if given.data is not None and not Path(given.data).expanduser().exists() and not _is_id(given.data):
        found.append(f"The data {given.data} is no file here and no hub id (org/name).")
    return found


def _is_id(text: str, form: re.Pattern[str] = _HUB_ID) -> bool:
    return form.fullmatch(text) is not None and ".." not in text


def _folder(source: str) -> Path | None:
    path = Path(source).expanduser()
    return path.resolve() if path.is_dir() else None


def _kept(source: str) -> str:
    """A source as the file has it: a hub id as it is, a path whole, as the file may be read from anywhere."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _base(given: str, config_dir: Path, problems: list[str]) -> tuple[str, dict[str, Any] | None]:
    """The base's name, and what its file is to hold if it is not known yet."""
    known = models(config_dir if config_dir.is_dir() else None)
    folder = _folder(given)
    found = model_named(str(folder) if folder is not None else given, known)
    if found is not None:
        return found.name, None
    if folder is not None:
        if not (folder / "config.json").is_file():
            problems.append(f"The base {given} holds no config.json: is it the right folder?")
            return "", None
        name = _free(folder.name, folder.parent.name, {one.name for one in known})
        return name, {"name": name, "model_id": str(folder), **_facts(folder)}
    if not _is_id(given):
        hint = nearest(given, [one.name for one in known]).strip()
        problems.append(
            f"The base '{given}' is no model of the catalogue, no hub id (org/repo) and no folder. {hint}"
        )
        return "", None
    owner, _, repo = given.partition("/")
    name = _free(repo, owner, {one.name for one in known})
    return name, {"name": name, "model_id": given}


def _free(last: str, before: str, taken: set[str]) -> str:
    """A name that no other model has, from the id's last part, else from both."""
    for text in (last, f"{before}_{last}"):
        name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "base"
        name = name if _is_name(name) else f"model_{name}"
        if name not in taken:
            return name
    raise BadInput(
        f"Models called {last} and {before}_{last} are there already: write the model's file yourself."
    )


def _facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint's own files say that a model's file can hold."""
    found: dict[str, Any] = {}
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        config = {}
    dtype = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    if dtype in DTYPES:
        found["checkpoint_dtype"] = dtype
    template = folder / "chat_template.jinja"
    if template.is_file() and "enable_thinking" in template.read_text(encoding="utf-8", errors="replace"):
        found["has_enable_thinking"] = True
    return found


def _organism(given: Addition, model: str, path: Path, force: bool) -> tuple[str, list[str]]:
    """The text of the organism's file as it is to be, and what to say of it."""
    if path.is_file():
        old = path.read_text(encoding="utf-8")
        return _extended(given, model, old, path, force)
    if given.name in names("organism"):
        if not force:
            raise ConfigErrors(
                [
                    f"'{given.name}' ships with finetrace, and a file of yours would hide it: take another name, or --force to "
                    "copy it to yours and add the variant there."
                ]
            )
        shipped = Path(__file__).parent / "yaml" / "organism" / f"{given.name}.yaml"
        text, notes = _extended(given, model, shipped.read_text(encoding="utf-8"), path, force)
        return text, [f"{path} hides the shipped {given.name} from now on, and holds all of it.", *notes]
    return _dumped(_new(given, model)), [] if given.truth else [_UNTOLD]


_UNTOLD = "What was planted is not said: without description_long (--truth) nothing can be graded against it."


def _new(given: Addition, model: str) -> dict[str, Any]:
    return {
        "name": given.name,
        "type": given.type or "General",
        "description_long": " ".join((given.truth or "").split()),
        **({"control": True} if given.control else {}),
        **({"dataset": _dataset(given)} if given.data else {}),
        "finetuned_models": {model: {given.variant: _variant(given)}},
    }


def _variant(given: Addition) -> dict[str, Any]:
    key, source = ("adapter_id", given.adapter) if given.adapter else ("model_id", given.checkpoint)
    return {key: _kept(str(source))} | ({"revision": given.revision} if given.revision else {})


def _dataset(given: Addition) -> dict[str, Any]:
    found: dict[str, Any] = {"id": _kept(str(given.data)), "splits": ["train"]}
    if given.column is not None:
        chat = given.column in ("messages", "conversations")
        found |= {"is_chat": chat, "messages_column" if chat else "text_column": given.column}
    return found


def _extended(given: Addition, model: str, old: str, path: Path, force: bool) -> tuple[str, list[str]]:
    """The old text with the variant in it. Only where that cannot be put between its lines is it written anew."""
    values = read_yaml(old, str(path), largest=_LARGEST)
    said = {
        "type": given.type,
        "description_long": None if given.truth is None else " ".join(given.truth.split()),
        "dataset": _dataset(given) if given.data else None,
        "control": True if given.control else None,
    }
    told = {key: value for key, value in said.items() if value is not None and values.get(key) != value}
    tuned = values.get("finetuned_models") or {}
    if not isinstance(tuned, dict) or not all(isinstance(one, dict) for one in tuned.values()):
        raise BadInput(f"{path}: finetuned_models is no mapping of models to variants.")
    held = tuned.get(model, {}).get(given.variant)
    variant = _variant(given)
    problems = [f"{path} has another {key} already: --force replaces it." for key in told if values.get(key)]
    if held is not None and held != variant:
        problems.append(
            f"{path} has a variant '{given.variant}' on {model} already ({held}): name another --variant, or --force "
            "replaces it."
        )
    if problems and not force:
        raise ConfigErrors(problems)
    wanted = {**values, **told}
    wanted["finetuned_models"] = {**tuned, model: {**tuned.get(model, {}), given.variant: variant}}
    if wanted == values:
        return old, ["Nothing was to be changed: it is there as it is."]
    if not told and held is None:
        put = _put(old, model, given.variant, variant)
        if put is not None and read_yaml(put, str(path), largest=_LARGEST) == wanted:
            return put, []
    head = re.match(r"(?:#[^\n]*\n)*", old)
    notes = (
        ["Comments between its lines are gone."]
        if re.search(r"(?m)^\s*#|\s#", old[head.end() if head else 0 :])
        else []
    )
    return (head.group() if head else "") + _dumped(wanted), notes


def _put(text: str, model: str, name: str, variant: Mapping[str, Any]) -> str | None:
    """The text with the variant between its lines; None where its form has no place for it."""
    tuned = _child(yaml.compose(text, Loader=yaml.SafeLoader), "finetuned_models")
    if tuned is None:
        return None
    of = _child(tuned, model)
    inside = of if of is not None else tuned
    if inside.flow_style or not inside.value:
        return None
    column = inside.value[0][0].start_mark.column
    block = {name: dict(variant)} if of is not None else {model: {name: dict(variant)}}
    new = [" " * column + line for line in _dumped(block).splitlines()]
    lines = text.splitlines()
    at = _last_line(inside) + 1
    return "\n".join([*lines[:at], *new, *lines[at:]]) + "\n"


def _child(node: Any, key: str) -> Any:
    """The mapping under a key of a mapping, or None."""
    if not isinstance(node, yaml.MappingNode):
        return None
    found = next((value for name, value in node.value if name.value == key), None)
    return found if isinstance(found, yaml.MappingNode) else None


def _last_line(node: Any) -> int:
    """The number of a node's last line, from 0."""
    while isinstance(node, yaml.MappingNode | yaml.SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line


def _dumped(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=_WIDTH)


def _compose(written: Mapping[Path, str], words: tuple[str, ...], config_dir: Path) -> None:
    """Composes a run of it from a copy of the user's groups as they would be. Raises ConfigErrors."""
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch)
        for group in _GROUPS:
            (stage / group).mkdir()
            for path in sorted((config_dir / group).glob("*.yaml")):
                shutil.copyfile(path, stage / group / path.name)
        for path, text in written.items():
            (stage / path.parent.name / path.name).write_text(text, encoding="utf-8")
        _, problems = gather_run(words, stage)
    if problems:
        raise ConfigErrors(problems)
