"""The command `finetrace`."""

from finetrace.cli.main import main

__all__ = ["main"]
