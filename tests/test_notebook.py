"""The notebook runs from top to bottom, and shows what its text says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


def test_it_is_kept_without_outputs() -> None:
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells())
    assert len(NOTEBOOK.read_bytes()) < 10_000


@pytest.mark.slow
def test_it_runs() -> None:
    """As plain Python, which all of it is; only the pictures at the ends of cells are not shown."""
    found: dict[str, Any] = {}
    for number, cell in enumerate(cells()):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), found)
    assert [picture.nfe for picture in found["drawn"]] == [100, 6, 1]
    assert [picture.nfe for picture in found["many"]] == [6] * 4
    assert found["answer"].text == found["plain"].text and found["answer"].passes <= found["plain"].passes
    assert "blue heart" in found["answer"].text
    assert str(found["color"]) == "blue"
    assert found["beside"](found["drawn"]).size == (3 * 192, 192)
