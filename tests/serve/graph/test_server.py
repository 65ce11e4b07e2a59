"""What ends the start of a server, and what does not."""

import io
import logging
from pathlib import Path

import pytest

from serve.graph.console import Console
from serve.graph.lifecycle import ServerError
from serve.graph.server import Watch
from serve.logs.events import EventFile, Events, tell

logger = logging.getLogger("serve.test_server")


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    logger.addHandler(EventFile(tmp_path, "engine-0"))
    logger.setLevel(logging.INFO)
    return Watch(Console(io.StringIO(), engines=1), Events(tmp_path))


def test_an_engine_that_cannot_start_ends_the_start_at_once(watch: Watch) -> None:
    tell(logger, "fault", "A member is left out.")
    watch.look()
    tell(logger, "start_failed", "The engine did not start: ValueError: no memory.")
    with pytest.raises(ServerError, match=r"^The engine did not start: ValueError: no memory\.$"):
        watch.look()


def test_once_the_server_answers_an_engine_that_cannot_restart_ends_nothing(watch: Watch) -> None:
    watch.starting = False
    tell(logger, "start_failed", "The engine did not start.")
    watch.look()
