"""Files and folders that the pages name are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "deployments" / "README.md"]
PAGES.remove(ROOT / "CHANGELOG.md")
"""What was called otherwise in the past is right there."""
FOLDERS = [ROOT, ROOT / "serve", ROOT / "training", ROOT / "clients", ROOT / "tests"]
"""Where a name may start."""
ENTRANCES = sorted(
    {child.name for folder in FOLDERS[:4] for child in folder.iterdir() if child.is_dir()}
)


def _named(page: Path) -> Iterator[str]:
    """Paths in code marks that are ours: they begin with a folder of ours, or name a Python file."""
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        path = code.partition("::")[0]
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path):
            continue
        if path.partition("/")[0] in ENTRANCES or path.endswith(".py"):
            yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    missing = {
        path for path in _named(page) if not any((folder / path).exists() for folder in FOLDERS)
    }

    assert not missing
