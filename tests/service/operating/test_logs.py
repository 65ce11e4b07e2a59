"""What a real server writes down: the lines that docs/operations.md promises, on the console and in the files."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.docs.log_lines import documented, line_with
from tests.service.models import TEXTS, Models
from tests.service.operating.test_trials import start, until_state
from tests.service.running import Service, foreign

pytestmark = pytest.mark.engine

ON_THE_CONSOLE = (
    "is ready after",
    "is live, instead of",
    "is live again",
    "answers N%",
    "is asked N%",
    "has not passed its trial",
)
IN_THE_FILES = (*ON_THE_CONSOLE, "copied N MB", "has drained")
ELSEWHERE = {
    "does not go live": "tests/serve/control/test_news.py",
    "has passed its trial": "tests/serve/control/test_news.py",
    "the controller restarted": "tests/serve/control/test_news.py",
    "is silent": "tests/serve/control/test_news.py",
    "vLLM's core is dead": "tests/soak/test_faults.py",
    "makes room for": "tests/serve/agents/test_making_room.py",
    "is loaded, because": "tests/serve/agents/test_making_room.py",
    "files to fetch": "tests/serve/control/artifacts/test_sources.py",
    "files so far": "tests/serve/control/artifacts/test_sources.py",
}
"""What this server has no occasion to say, and the test that hears it."""
PATIENCE = 30


def test_no_documented_line_is_without_a_test() -> None:
    heard = {line_with(words).pattern for words in (*IN_THE_FILES, *ELSEWHERE)}
    assert heard == {pattern.pattern for pattern in documented().values()}


def messages(service: Service) -> list[str]:
    """The messages in the log files of all processes."""
    return [str(line.get("message")) for line in lines(service, "*")]


def lines(service: Service, process: str) -> list[dict[str, Any]]:
    files = sorted(service.logs.glob(f"{process}.log"))
    files = [file for file in files if file.name != "driver.log"]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_what_happens_to_versions_is_on_the_console_and_in_the_files(
    service: Service, models: Models
) -> None:
    for adapter in ("a2", "a"):
        body = {"members": {"a": models.uri(adapter)}}
        assert service.post("/v1/ensembles/intents/swap?wait=true", body).status_code == 200
    assert service.post("/v1/ensembles/intents/rollback?wait=true", {}).status_code == 200
    for kind, state in (("canary", "canarying"), ("shadow", "shadowing")):
        rollout = start(service, models, {"b": "b2"}, {"kind": kind, "share": 0.25})
        until_state(service, rollout, state)
        aborted = service.post(f"/v1/rollouts/{rollout['id']}/abort", {})
        assert aborted.status_code == 200, aborted.text

    def missing(words: tuple[str, ...], said: list[str]) -> list[str]:
        text = "\n".join(said)
        return [each for each in words if not line_with(each).search(text)]

    deadline = time.monotonic() + PATIENCE
    while missing(ON_THE_CONSOLE, service.console) + missing(IN_THE_FILES, messages(service)):
        assert time.monotonic() < deadline, (
            missing(ON_THE_CONSOLE, service.console),
            missing(IN_THE_FILES, messages(service)),
        )
        time.sleep(0.1)
    assert foreign(service.console) == []


def line_of(service: Service, answer: httpx.Response) -> dict[str, Any]:
    """Return the line of the request with this answer. It is written once the client has the answer."""
    request_id = answer.headers["x-request-id"].partition(",")[0]
    deadline = time.monotonic() + PATIENCE
    while True:
        for line in lines(service, "gateway-*"):
            if line.get("request_id") == request_id:
                return line
        assert time.monotonic() < deadline, f"no line has the id {request_id}"
        time.sleep(0.1)


def test_each_request_is_one_line_with_the_id_of_its_answer(service: Service) -> None:
    good = service.post("/v1/predict", {"model": "intents", "input": TEXTS[0]})
    line = line_of(service, good)
    assert (line["event"], line["route"], line["status"]) == ("request", "/v1/predict", 200)
    assert line["model"] == good.json()["model"] == f"intents@{line['version']}"
    assert 0 < line["ms"] < 60_000
    bad = line_of(service, service.post("/v1/predict", {"model": "nobody", "input": TEXTS[0]}))
    assert (bad["status"], bad["model"], bad["version"]) == (404, None, None)
    assert TEXTS[0] not in json.dumps(lines(service, "gateway-*"))


def test_no_file_has_colours(service: Service) -> None:
    for file in service.logs.iterdir():
        assert file.is_dir() or b"\x1b" not in file.read_bytes(), file
