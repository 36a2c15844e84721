"""For all tests: one torch thread, and a cache that is not the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny base, made once a session; not to be written to."""
    from tests.tiny import save_base

    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_base(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find
