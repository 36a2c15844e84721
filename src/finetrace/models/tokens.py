"""Tokenizers, chat templates and configurations of a pair's checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetrace.core.errors import BadInput, ModelError
from finetrace.core.files import read_json
from finetrace.core.runkey import digest
from finetrace.models.files import cut
from finetrace.models.loading import LOAD_ERRORS, quiet
from finetrace.models.source import Source, located, one_line

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(name: str, folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except LOAD_ERRORS as error:
        raise ModelError(f"The tokenizer of {name} could not be loaded: {one_line(error)}") from error


def tokenizer_folder(given: str | Path) -> Path:
    """Where a tokenizer that was named lies: a folder, or a hub id, of which no weights are fetched."""
    folder, _ = located(given)
    if not has_tokenizer(folder):
        raise ModelError(f"{given} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES[:3])}).")
    return folder


def load_tokenizers(
    base: Source,
    others: Mapping[str, Source | None],
    given: str | Path | None,
    template: str | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """One tokenizer a side; a side that brings none uses the base's very object.

    The base's takes the given chat template, else its own, else the tuned side's (base models often have none).
    """
    if given is not None:
        chosen = load_tokenizer(str(given), Path(given).expanduser(), trust_remote_code)
        found: dict[str, Any] = {"base": chosen} | dict.fromkeys(others, chosen)
    elif not has_tokenizer(base.folder):
        raise ModelError(f"{base.name} has no tokenizer: give one with tokenizer=FOLDER.")
    else:
        found = {"base": load_tokenizer(base.name, base.folder, trust_remote_code)}
        for side, source in others.items():
            found[side] = found["base"]
            if source is not None and has_tokenizer(source.folder):
                found[side] = load_tokenizer(source.name, source.folder, trust_remote_code)
    if template is not None:
        found["base"].chat_template = template
    elif found["base"].chat_template is None and found["tuned"].chat_template is not None:
        found["base"].chat_template = found["tuned"].chat_template
    return found


def read_template(given: str | None) -> str | None:
    """A chat template given as itself or as a file; anything with "{" in it is a template."""
    if given is None or "{" in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise BadInput(f"The chat template {given} is neither a template nor a file.")
    return path.read_text(encoding="utf-8")


def read_config(source: Source, trust_remote_code: bool) -> Any:
    """The text part of the transformers config in a folder."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except LOAD_ERRORS as error:
        raise ModelError(f"The config.json of {source.name} could not be read: {one_line(error)}") from error
    return cut(config, source).get_text_config(decoder=True)


def own_dtype(source: Source) -> str | None:
    """The dtype that a checkpoint's config.json says it is in."""
    try:
        config = read_json(source.folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The config.json of {source.name} is not readable JSON: {one_line(error)}"
        ) from None
    text = config.get("text_config") or {}
    return config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of vocabulary, splitting rules, special tokens and chat template; padding and truncation left out."""
    rules = None
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    vocab = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return digest({"vocab": vocab, "rules": rules, "special": special, "template": tokenizer.chat_template})
