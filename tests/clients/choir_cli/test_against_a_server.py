"""The command against a real gateway and controller: what it prints is true, and what it tells to type works."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve.graph.start_notes import notes
from serve.protocol.views import EnsembleView
from tests.clients.choir_cli.conftest import Choir
from tests.serve.fakes import make_adapter, make_bundle
from tests.serve.gateway.running import running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with running(folder) as url:
        yield url


def test_an_unknown_ensemble_is_suggested(choir: Choir, server: str) -> None:
    for arguments in (
        ("predict", "x", "--model", "intent"),
        ("swap", "intent", "--version", "1"),
        ("rollback", "intent"),
    ):
        ran = choir(*arguments, "--url", server)
        assert ran.status == 1
        assert "Did you mean 'intents'?" in ran.err


def test_status_says_where_each_adapter_came_from(choir: Choir, server: str, folder: Path) -> None:
    uri = make_adapter(folder / "new" / "x", 100).as_uri()
    swapped = choir("swap", "intents", f"a={uri}", "--url", server)
    assert swapped.out.startswith("intents: version 1 -> 2, ")
    shown = choir("status", "--url", server).out
    assert f"{server}: ready, Choir {version_of(server)}" in shown
    lines = [line for line in shown.splitlines() if "intents-" in line]
    assert uri in lines[0]
    assert "by no token, from 127.0.0.1" in lines[0]
    assert "with the bundle" in lines[1]
    assert "/bundle/adapters/intents-b/" in lines[1]
    for table in (
        choir("rollouts", "--url", server),
        choir("rollouts", "--audit", "--url", server),
    ):
        assert f"a: {uri}" in table.out
        assert "no token, from 127.0.0.1" in table.out


def version_of(url: str) -> str:
    return str(httpx.get(f"{url}/version").json()["choir"])


def test_the_command_that_a_start_prints_brings_its_bundle_in(choir: Choir, folder: Path) -> None:
    first, other = make_bundle(folder / "bundle"), make_bundle(folder / "other", seed=50)
    with running(folder, first):
        pass
    with running(folder, other) as url:
        [view] = httpx.get(f"{url}/v1/ensembles").json()["data"]
        said = notes([EnsembleView.model_validate(view)], url)
        command = said.splitlines()[-1].strip()
        assert command == f"choir swap intents --version 2 --url {url}"
        assert command in choir("status", "--url", url).out
        for bundle in (first, other):
            for digest in bundle.ensemble("intents").digests:
                assert digest.removeprefix("sha256:")[:12] in said
        ran = choir(*shlex.split(command)[1:])
        assert (ran.status, ran.out.split(",")[0]) == (0, "intents: version 1 -> 2")
        [view] = httpx.get(f"{url}/v1/ensembles").json()["data"]
        assert view["digests"] == list(other.ensemble("intents").digests)
        assert notes([EnsembleView.model_validate(view)], url) == ""
