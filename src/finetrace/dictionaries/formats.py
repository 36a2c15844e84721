"""Dictionaries from elsewhere and for elsewhere: ours, SAELens's and dictionary_learning's folders, local or on the hub.

Only JSON and safetensors are read; no code is loaded and no pickle is opened. Codes and reconstructions are those of the
tool that wrote the folder; what has no place in a format is folded into the weights where that changes nothing, and is
refused otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finetrace.core.errors import BadInput, unknown
from finetrace.core.files import write_bytes, write_json
from finetrace.dictionaries import dictionary_learning, saelens
from finetrace.dictionaries.dictionary import Dictionary, told_of
from finetrace.dictionaries.foreign import LARGEST, read_config, read_tensors, refuse_large
from finetrace.models.source import located

__all__ = ["FORMATS", "OWN", "Format", "Opened", "Origin", "export", "load_dictionary", "open_dictionary"]

Format = Literal["finetrace", "saelens", "dictionary_learning"]
FORMATS: tuple[Format, ...] = get_args(Format)
OWN = "dictionary.safetensors"
"""The file of ours in a folder."""

_CONFIGS = (saelens.CONFIG, dictionary_learning.CONFIG)
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """Where a dictionary comes from. name: as it was given. revision: the hub commit. model, hook: what it was trained on,
    as its configuration says; layer: the block whose output it reads; reads: see `reading.Reads`. None where that is not
    said."""

    format: Format
    name: str
    revision: str | None = None
    model: str | None = None
    hook: str | None = None
    layer: int | None = None
    reads: str | None = None


@dataclass(frozen=True)
class Opened:
    dictionary: Dictionary
    origin: Origin


def load_dictionary(
    source: str | Path, *, d_model: int | None = None, scale: float | None = None, largest: int = LARGEST
) -> Dictionary:
    """The dictionary of `open_dictionary`, without where it comes from."""
    return open_dictionary(source, d_model=d_model, scale=scale, largest=largest).dictionary


def open_dictionary(
    source: str | Path, *, d_model: int | None = None, scale: float | None = None, largest: int = LARGEST
) -> Opened:
    """A dictionary by its folder, its file, or a hub id (`org/repo`, `org/repo/subfolder`, either with `@revision`).

    d_model: the width of the pair's hidden states; another raises. scale: what a SAELens SAE's hidden states are multiplied
    by, where its folder asks for a factor and does not hold it. largest: bytes of weights that are read at most.
    """
    name = str(source)
    path = Path(name).expanduser()
    if path.is_file():
        found = _file(path, name, scale, largest)
    else:
        if path.suffix in (".safetensors", *_PICKLES) and not path.is_dir():
            raise BadInput(f"There is no file {name}: check the path.")
        folder, revision = located(source, wanted=(*_CONFIGS, OWN))
        found = _folder(folder, name, revision, scale, largest)
    width = found.dictionary.d
    if d_model is not None and width != d_model:
        raise BadInput(
            f"The dictionary {name} reads hidden states of {width} numbers, and this pair's have {d_model}: it was trained "
            f"on another model{f' ({found.origin.model})' if found.origin.model else ''}."
        )
    return found


def export(
    dictionary: Dictionary,
    folder: Path,
    format: str,
    *,
    about: Mapping[str, str] | None = None,
    k: int | None = None,
) -> list[Path]:
    """Writes a dictionary into a folder, whose files of the same names have to be absent; the files.

    Read again, codes and reconstructions are the same to float32 rounding. about: what else to write into the
    configuration (`model_name`, `hook_name`, ...), where it has a place. k: see `dictionary_learning.write`.
    """
    if format not in FORMATS:
        raise unknown("dictionary format", format, FORMATS)
    if format == "finetrace":
        _refuse_present(folder, OWN)
        dictionary.save(folder / OWN)
        return [folder / OWN]
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    if format == saelens.FORMAT:
        config, tensors = saelens.write(dictionary, about or {})
        names = (saelens.CONFIG, saelens.WEIGHTS)
    else:
        config, tensors, weights = dictionary_learning.write(dictionary, about or {}, k)
        names = (dictionary_learning.CONFIG, weights)
    _refuse_present(folder, *names)
    # The weights first: a folder with a configuration is whole.
    write_bytes(folder / names[1], save(tensors, {"format": "pt"}))
    write_json(folder / names[0], config)
    return [folder / name for name in names]


def _refuse_present(folder: Path, *names: str) -> None:
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise BadInput(f"{folder} already holds {', '.join(there)}: name another folder.")


def _file(path: Path, name: str, scale: float | None, largest: int) -> Opened:
    """One file: ours, or another tool's weights with their configuration beside them."""
    if path.suffix in _PICKLES:
        raise BadInput(_pickle(path.name))
    if path.suffix != ".safetensors":
        raise BadInput(f"{name} is no dictionary: give a folder, or a .safetensors file.")
    refuse_large(path, largest)
    if _is_ours(path):
        return _own(path, name)
    config = path.parent / (saelens.CONFIG if path.name == saelens.WEIGHTS else dictionary_learning.CONFIG)
    if not config.is_file():
        raise BadInput(
            f"{name} is not a dictionary of finetrace's, and no {config.name} beside it says what it is."
        )
    return _read(config, path, name, None, scale, largest)


def _own(path: Path, name: str, revision: str | None = None) -> Opened:
    dictionary, about = Dictionary.load(path), told_of(path)
    layer, reads = about.get("layer"), about.get("reads")
    return Opened(
        dictionary,
        Origin(
            "finetrace",
            name,
            revision,
            layer=layer if isinstance(layer, int) else None,
            reads=reads if isinstance(reads, str) else None,
        ),
    )


def _folder(folder: Path, name: str, revision: str | None, scale: float | None, largest: int) -> Opened:
    if (folder / OWN).is_file():
        refuse_large(folder / OWN, largest)
        return _own(folder / OWN, name, revision)
    config = next((folder / one for one in _CONFIGS if (folder / one).is_file()), None)
    if config is None:
        raise BadInput(_nothing(folder, name))
    read = read_config(config)
    if "architectures" in read or "model_type" in read:
        raise BadInput(f"{name} is a language model (its {config.name} says so), not a dictionary.")
    wanted = (
        (saelens.WEIGHTS,)
        if config.name == saelens.CONFIG
        else (dictionary_learning.WEIGHTS, dictionary_learning.CROSSCODER_WEIGHTS)
    )
    if revision is not None:
        place = f"{name.partition('@')[0]}@{revision}"
        folder, _ = located(place, wanted=wanted)
    weights = next((folder / one for one in wanted if (folder / one).is_file()), None)
    if weights is None:
        pickled = sorted(one.name for one in folder.iterdir() if one.suffix in _PICKLES)
        raise BadInput(
            _pickle(pickled[0])
            if pickled
            else f"{name} has {config.name} and no {' or '.join(wanted)}: pickles (ae.pt) are not read, see docs/dictionaries.md."
        )
    return _read(config, weights, name, revision, scale, largest)


def _read(
    config: Path, weights: Path, name: str, revision: str | None, scale: float | None, largest: int
) -> Opened:
    said, tensors = read_config(config), read_tensors(weights, largest)
    if config.name == saelens.CONFIG:
        model, hook, layer = saelens.site(said)
        made, format_ = saelens.read(said, tensors, name, scale), "saelens"
    else:
        if scale is not None:
            raise BadInput(f"{name} is not SAELens's: it takes no scale.")
        model, hook, layer = dictionary_learning.site(said)
        made, format_ = dictionary_learning.read(said, tensors, name), "dictionary_learning"
    return Opened(made, Origin(format_, name, revision, model, hook, layer))


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as opened:
            return "dictionary" in (opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is cut short, corrupt or no safetensors file: {error}.") from None


def _nothing(folder: Path, name: str) -> str:
    """Why a folder cannot be read, and what in it can."""
    there = sorted(folder.iterdir())
    pickled = [one.name for one in there if one.suffix in _PICKLES]
    if pickled:
        return _pickle(pickled[0])
    if any(one.suffix == ".npz" for one in there):
        return f"{name} holds NumPy files (Gemma Scope's own layout): load it with SAELens and save it from there."
    nearer = [
        one.name for one in there if one.is_dir() and any((one / c).is_file() for c in (*_CONFIGS, OWN))
    ]
    if nearer:
        return f"{name} is no dictionary, and holds some: name one of {', '.join(nearer[:_SHOWN])}."
    return (
        f"{name} is no dictionary: there is neither {OWN} (finetrace), nor {saelens.CONFIG} with {saelens.WEIGHTS} "
        f"(SAELens), nor {dictionary_learning.CONFIG} with {dictionary_learning.WEIGHTS} or "
        f"{dictionary_learning.CROSSCODER_WEIGHTS} (dictionary_learning)."
    )


def _pickle(name: str) -> str:
    return (
        f"{name} is a pickle, which can run code when it is opened, and is not read. Convert it where you trust it: "
        f"python -c \"import torch, safetensors.torch as s; t = torch.load('{name}', weights_only=True); "
        "s.save_file({n: v.contiguous() for n, v in t.items()}, 'ae.safetensors')\""
    )
