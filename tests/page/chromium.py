"""A real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Request,
    sync_playwright,
)

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start Chromium, and close it at the end; the test is skipped where it is not installed.

    It must be closed before a test with a loop of its own runs: Playwright keeps a loop running in this thread."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed (Debian, Ubuntu: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, with what went wrong on it, and what it asked of other hosts."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self._url = url
        page.on("console", self._on_console)
        page.on("pageerror", self._on_error)
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _on_error(self, error: Error) -> None:
        self.complaints.append(str(error))

    def _on_request(self, request: Request) -> None:
        if request.url.startswith(("http", "ws")) and not request.url.startswith(f"{self._url}/"):
            self.foreign.append(request.url)


def visit(context: BrowserContext, url: str, patience: float = 15_000) -> Visit:
    """Open the page of the server at `url`. Actions on it wait for at most `patience` milliseconds."""
    page = context.new_page()
    page.set_default_timeout(patience)
    visited = Visit(page, url)
    page.goto(f"{url}/")
    return visited
