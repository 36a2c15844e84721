"""`finetrace doctor`: is this installation fit for work?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import typer

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "datasets",
    "accelerate",
    "numpy",
    "scipy",
    "plotly",
)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def add(app: typer.Typer) -> None:
    app.command("doctor", epilog="Example: finetrace doctor")(doctor)


def doctor() -> None:
    """Check the installation: versions, devices, threads, bundled files, methods, room on the disk."""
    sound = True
    for name, text, fine in [*_versions(), *_machine(), *_bundled(), *_methods()]:
        typer.echo(f"{'ok     ' if fine else 'PROBLEM'} {name}: {text}")
        sound &= fine
    raise typer.Exit(0 if sound else 1)


def _versions() -> list[tuple[str, str, bool]]:
    rows = [
        ("finetrace", f"{importlib.metadata.version('finetrace')}, Python {platform.python_version()}", True)
    ]
    for name in LIBRARIES:
        installed = importlib.util.find_spec(name) is not None
        rows.append((name, importlib.metadata.version(name) if installed else "not installed", installed))
    return rows


def _machine() -> list[tuple[str, str, bool]]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        device = f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    else:
        device = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    offline = [name for name in OFFLINE if os.environ.get(name)]
    ray = importlib.util.find_spec("ray") is not None
    return [
        ("device", device, True),
        ("ray", importlib.metadata.version("ray") if ray else "not installed; for infrastructure=ray", True),
        ("disk", f"{disk:.1f} GiB free here", disk > 1),
        ("hub", f"offline ({', '.join(offline)})" if offline else "online when a hub id is asked for", True),
    ]


def _bundled() -> list[tuple[str, str, bool]]:
    from finetrace.organisms import bundled

    wrong = bundled.damaged()
    text = (
        f"{len(bundled.names())} organisms"
        if not wrong
        else f"damaged: {', '.join(wrong)}; install finetrace again"
    )
    return [("tiny world", text, not wrong)]


def _methods() -> list[tuple[str, str, bool]]:
    from finetrace.core.card import discover

    found, broken = discover()
    rows = [("methods", ", ".join(found), bool(found))]
    return rows + [(f"method {card.name}", card.error, False) for card in broken]
