"""What every page that we write is made with: one environment, one style, one script, and nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from finetrace.drawing.text import one_line, visible
from finetrace.report import words
from finetrace.report.json import encode

__all__ = ["asset", "environment", "policy", "script_json", "slug", "untitled"]

# Inside <script> only these can end the element or start a comment; in JSON they can occur in strings alone.
_SCRIPT_UNSAFE = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def untitled(drawn: dict[str, Any]) -> dict[str, Any]:
    """A drawing whose title stands above it in the page already."""
    layout = {key: value for key, value in drawn["layout"].items() if key != "title"}
    top = 36 if layout["showlegend"] else 12
    return {"data": drawn["data"], "layout": layout | {"margin": layout["margin"] | {"t": top}}}


def environment() -> Environment:
    """Escapes everything, and shows invisible or reordering characters as code points, wherever a string is printed."""
    environment = Environment(
        loader=PackageLoader("finetrace.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["n"] = words.number
    environment.filters["line"] = one_line
    environment.filters["slug"] = slug
    environment.filters["prose"] = _prose
    return environment


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def slug(text: str) -> str:
    """A name as an element id: letters, digits and hyphens only."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())


def _prose(text: str) -> Markup:
    """A sentence, escaped, in which `backticks` set a word in a monospaced face."""
    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(visible(text)))))


def asset(name: str) -> str:
    text = (files("finetrace.report") / "templates" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def script_json(value: Mapping[str, Any]) -> str:
    text = json.dumps(encode(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_SCRIPT_UNSAFE.get(c, c) for c in text)


def policy(scripts: list[str]) -> str:
    """Nothing may be loaded from anywhere; the only scripts that run are these, by their hashes."""
    hashes = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
