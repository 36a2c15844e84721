"""The example notebook runs from top to bottom, offline."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "finetrace.ipynb"


def test_the_notebook_runs(tmp_path: Path, lent_shelf: Path, monkeypatch: pytest.MonkeyPatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FINETRACE_SHELF", str(lent_shelf))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [str(cell.get("outputs", "")) for cell in notebook.cells]
    assert any("beyond-nulls" in text for text in outputs)
    assert any("regressed" in text for text in outputs)
    assert (tmp_path / "finetrace-notebook" / "report.html").exists()


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
