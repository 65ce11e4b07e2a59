"""The pages of docs/ as a site."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class _Page(HTMLParser):
    """Collects what a browser would load for a page by itself, the classes of its elements, and its paragraphs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.classes: set[str] = set()
        self.paragraphs: list[str] = []
        self._in_paragraph = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes.update(given.get("class", "").split())
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(given.get("src", ""))
        if tag == "link":
            self.loaded.append(given.get("href", ""))
        if tag == "p":
            self.paragraphs.append("")
            self._in_paragraph = True

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._in_paragraph = False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a broken link, a missing anchor or a page without a place in the navigation fails the build."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_of_the_docs_is_built(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}

    assert pages
    assert {name for name in pages if (site / name / "index.html").is_file()} == pages


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}

    foreign = {
        str(path.relative_to(site)): loaded
        for path, page in pages.items()
        for loaded in page.loaded
        if "//" in loaded
    }
    assert not foreign
    # The theme fetches Mermaid from a CDN where a page has such an element, and GitHub's figures where it has a source.
    assert not {"mermaid", "md-source"} & set().union(*(page.classes for page in pages.values()))


def test_lists_and_tables_are_not_left_as_text(site: Path) -> None:
    left = {
        str(path.relative_to(site)): paragraph
        for path in site.rglob("index.html")
        for paragraph in _Page(path.read_text(encoding="utf-8")).paragraphs
        if re.search(r"^([-*|]|\d+\.) ", paragraph, re.MULTILINE)
    }

    assert not left
