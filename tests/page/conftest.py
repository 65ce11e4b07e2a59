"""One server and one browser for the tests of this folder. Gateway, controller, store and database are real; the
engines behind them are scripted, so that the page sees every kind of answer at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext

from serve.bundle import Bundle
from serve.manifest import Ensemble
from tests.page.answers import ScriptedEngines
from tests.page.chromium import browsing
from tests.serve.fakes import make_adapter, make_bundle
from tests.serve.gateway.running import running
from tests.serve.world import World

MARKUP = "<img src=x onerror=window.broken=1>"
"""A label that a careless page would run."""
LABELS = ["track_order", "cancel_order", "change_address", "get_refund", "complain", MARKUP]


@dataclass
class Server:
    """A server of the page, and what stands behind it."""

    url: str
    folder: Path
    engines: list[ScriptedEngines] = field(default_factory=list)

    def new_adapter(self, seed: int) -> str:
        """The URI of an adapter that may be swapped in."""
        folder = self.folder / "new" / f"{seed}"
        return (folder if folder.exists() else make_adapter(folder, seed)).as_uri()


def make_bundles(folder: Path) -> list[Bundle]:
    """Ensembles of the tasks that a causal base serves, labels and text, over the same adapters."""
    bundle = make_bundle(folder / "bundle", "intents", members=3)
    common = bundle.ensemble("intents").model_dump(exclude_none=True)
    (bundle.path / "ensembles" / "intents" / "1.json").unlink()
    for changes in (
        {"labels": LABELS, "template": "{text}\nIntent:"},
        {"name": "replies", "task": "generation", "labels": None},
        {
            "name": "twins",
            "labels": ["same", "other"],
            "template": "{text}\n{text_pair}\nThey are:",
        },
    ):
        bundle.write_ensemble(Ensemble.model_validate(common | changes))
    return [bundle]


def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    """Yield a running server."""
    behind: list[ScriptedEngines] = []

    def engines(world: World) -> ScriptedEngines:
        behind.append(ScriptedEngines(world))
        return behind[0]

    with running(folder, *make_bundles(folder), engines=engines, **settings) as url:
        yield Server(url, folder, behind)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory.mktemp("page"), max_inputs=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()
