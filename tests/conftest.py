"""For all tests: one torch thread, and a cache that is not the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that is shared, and the same commit has the same examples:
# --hypothesis-profile=new looks for others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("same")

LENT = os.environ.get("FINETRACE_SHELF")
"""A test has its own shelf, unless it asks for `lent_shelf`."""
LONG = (
    "house/test_docs.py",
    "api/test_world.py",
    "organisms/test_build.py",
    "api/test_world_weights.py",
    "finetune/test_drift.py",
    "cli/test_train.py",
    "house/test_notebook.py",
)
"""The longest files, longest first: what is begun last should be short, so that two workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("FINETRACE_SHELF", raising=False)
        yield


@pytest.fixture(scope="session")
def lent_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for FINETRACE_SHELF, one for all workers: audits of bundled pairs hold them against the same nulls, whose
    results are made once. Not for a test of whether, or how, a result is made."""
    if LENT:
        return Path(LENT)
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "lent"


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
