"""What a process writes down: its own log, and the events that the console shows."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.logs.events import FILE, MAX_BYTES, Event, Events, tell, tell_phase
from serve.logs.lines import LogFormat, with_fields
from serve.logs.process import CHOIRS, LogSettings, log_also, open_log

logger = logging.getLogger("serve.test")


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Puts the loggers back as they were."""
    known = [logging.getLogger(), *(logging.getLogger(name) for name in (*CHOIRS, "vllm"))]
    before = [(each, list(each.handlers), each.level, each.propagate) for each in known]
    yield
    for each, handlers, level, propagate in before:
        for handler in each.handlers:
            if handler not in handlers:
                handler.close()
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gateway-0.log").read_text().splitlines()]


def test_a_line_is_one_json_object_with_its_fields(tmp_path: Path) -> None:
    open_log(LogSettings(tmp_path), "gateway-0")
    logger.info("%s", "request", extra=with_fields({"event": "request", "status": 200}))
    logger.info("%s makes room for %s.", "a@1", "b@2")
    request, message = lines(tmp_path)
    assert request.pop("time").endswith("+00:00")
    assert request == {"level": "info", "process": "gateway-0", "event": "request", "status": 200}
    assert (message["message"], message["logger"]) == ("a@1 makes room for b@2.", "serve.test")


def test_a_trace_is_in_the_line_and_colours_are_not(tmp_path: Path) -> None:
    open_log(LogSettings(tmp_path), "gateway-0")
    try:
        raise ValueError("\x1b[31mred\x1b[0m")
    except ValueError:
        logger.exception("\x1b[1mIt failed.\x1b[0m")
    (line,) = lines(tmp_path)
    assert line["message"] == "It failed."
    assert line["trace"].endswith("ValueError: red")


def test_a_line_of_text_says_the_same(tmp_path: Path) -> None:
    open_log(LogSettings(tmp_path, form="text"), "gateway-0")
    logger.info(
        "%s", "request", extra=with_fields({"event": "request", "status": 200, "model": None})
    )
    logger.warning("Careful.")
    request, careful = (tmp_path / "gateway-0.log").read_text().splitlines()
    assert request.endswith(" info gateway-0 request status=200")
    assert careful.endswith(" warning gateway-0 message Careful. logger=serve.test")


def test_the_level_is_that_of_choirs_own_lines(tmp_path: Path) -> None:
    open_log(LogSettings(tmp_path, level="warning"), "gateway-0")
    logger.info("no")
    logger.warning("yes")
    assert [line["message"] for line in lines(tmp_path)] == ["yes"]


def test_of_other_libraries_warnings_are_logged(tmp_path: Path) -> None:
    open_log(LogSettings(tmp_path, level="debug"), "gateway-0")
    for name in ("another", "vllm"):
        library = logging.getLogger(name)
        library.propagate = name != "vllm"
        log_also("vllm") if name == "vllm" else None
        library.warning("yes")
    logging.getLogger("another").info("no")
    assert [(line["logger"], line["message"]) for line in lines(tmp_path)] == [
        ("another", "yes"),
        ("vllm", "yes"),
    ]


@pytest.mark.parametrize("form", ["json", "text"])
def test_events_are_told_whatever_the_level_and_the_form_of_the_log(
    tmp_path: Path, form: LogFormat
) -> None:
    open_log(LogSettings(tmp_path, "error", form), "engine-0")
    events = Events(tmp_path)
    tell(logger, "swap", "intents: version 2 is live.", actor="ann")
    tell_phase(logger, "Proving adapter", 1, 6)
    logger.info("not an event")
    logger.error("It broke.")
    logger.error("%s", "error", extra=with_fields({"event": "error", "request_id": "r"}))
    found = [(each.event, each.message, each.done, each.total) for each in events.new()]
    assert found == [
        ("swap", "intents: version 2 is live.", 0, 0),
        ("phase", "Proving adapter", 1, 6),
        ("fault", "It broke.", 0, 0),
    ]
    assert not list(events.new())


def test_events_of_earlier_runs_and_broken_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / FILE
    event = json.dumps(Event("2026-01-01T00:00:00+00:00", "engine-0", "swap", "old").__dict__)
    file.write_text(event + "\n")
    events = Events(tmp_path)
    with file.open("a") as more:
        more.write("no json\n[1]\n" + '{"event": "unknown"}\n' + event.replace("old", "new") + "\n")
        more.write(event[:20])
    assert [each.message for each in events.new()] == ["new"]
    with file.open("a") as more:
        more.write(event[20:] + "\n")
    assert [each.message for each in events.new()] == ["old"]


def test_a_large_file_of_events_is_put_aside_at_the_start(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * (MAX_BYTES + 1))
    events = Events(tmp_path)
    open_log(LogSettings(tmp_path), "engine-0")
    tell(logger, "started", "engine-0 is ready.")
    assert [each.message for each in events.new()] == ["engine-0 is ready."]
    assert (tmp_path / f"{FILE}.1").stat().st_size == MAX_BYTES + 1
