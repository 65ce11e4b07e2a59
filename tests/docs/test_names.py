"""Files and folders that the pages name are there, and the map of the code names every folder."""

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
PACKAGES = [ROOT / "serve", ROOT / "training", ROOT / "clients"]
ENTRANCES = sorted(
    {child.name for folder in FOLDERS[:4] for child in folder.iterdir() if child.is_dir()}
)


def _codes(page: Path) -> Iterator[str]:
    """Yields what stands in code marks, without a test's function behind its file."""
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        yield code.partition("::")[0]


def _named(page: Path) -> Iterator[str]:
    """Yields the paths that are ours: they begin with a folder of ours, or name a Python file."""
    for path in _codes(page):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path):
            continue
        if path.partition("/")[0] in ENTRANCES or path.endswith(".py"):
            yield path


def _is_there(path: str) -> bool:
    return any((folder / path).exists() for folder in FOLDERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    assert not {path for path in _named(page) if not _is_there(path)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_files_that_a_page_names_without_their_folder_are_there(page: Path) -> None:
    files = {file.name for folder in FOLDERS[1:] for file in folder.rglob("*.py")}
    named = {code for code in _codes(page) if re.fullmatch(r"\w+\.py", code)}

    assert not named - files


def test_the_map_has_every_folder_of_the_packages() -> None:
    folders = {
        str(file.parent.relative_to(ROOT))
        for package in PACKAGES
        for file in package.rglob("*.py")
        if "__pycache__" not in file.parts
    }
    named = {code.rstrip("/") for code in _codes(ROOT / "docs" / "architecture.md")}

    assert folders - named == set()
