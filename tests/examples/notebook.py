"""examples/ask_choir.ipynb: its code, and a run of it."""

from pathlib import Path
from typing import Any

import nbformat

NOTEBOOK = Path(__file__).parents[2] / "examples" / "ask_choir.ipynb"


def read() -> Any:
    """Return the notebook, checked against its format."""
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def run() -> dict[str, Any]:
    """Run every code cell in order, as a kernel would; return the names that they leave."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(read().cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{NOTEBOOK.name}[{number}]", "exec"), names)
    return names
