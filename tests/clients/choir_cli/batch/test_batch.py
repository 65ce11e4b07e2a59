"""`choir batch`: what it writes, what it asks again, and what is left after it was ended."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from choir_cli.batch import command
from choir_cli.batch.asking import Patience
from tests.clients.choir_cli.batch.lines import read, request, write
from tests.clients.choir_cli.conftest import Choir

INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from choir_cli.main import run
run()
"""
"""A shell that runs the tests in the background has its children ignore Ctrl-C."""


@dataclass
class Server:
    """Answers each request with its text, or as the test has set."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """Text -> how often it was asked."""
    answer: Callable[[str], tuple[int, dict[str, str]]] = lambda text: (200, {})
    """Returns the status and the headers of the answer to a text."""
    foreign: bool = False
    """Whether a proxy answers, in plain text."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = body["input"]
            told.asked[text] += 1
            status, headers = told.answer(text)
            error = {"error": {"message": "no", "type": "internal_error"}}
            content = json.dumps({"said": text} if status < 400 else error).encode()
            if told.foreign:
                content = b"Internal Server Error"
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("CHOIR_URL", told.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(command, "PATIENCE", Patience(3, 0.0, 0.0))
    yield told
    http.shutdown()
    http.server_close()
    thread.join()


def test_answered_lines_are_left_out(choir: Choir, server: Server, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a", "a"), "bad", request("b", "b"))
    target = tmp_path / "out.jsonl"
    arguments = ("batch", "-i", str(source), "-o", str(target))
    assert choir(*arguments).status == 0
    before = target.read_bytes()
    ran = choir(*arguments)
    assert "0 answered, 3 answered before" in ran.out
    assert target.read_bytes() == before

    # The end of a file that was being written when the process was killed.
    torn = before[:-20]
    lost = next(each["custom_id"] for each in read(target)[-1:])
    target.write_bytes(torn)
    write(source, request("a", "a"), "bad", request("b", "b"), request("c", "c"))
    assert choir(*arguments).status == 0
    assert sorted(str(line["custom_id"]) for line in read(target)) == ["None", "a", "b", "c"]
    assert server.asked == Counter({"a": 1, "b": 1, "c": 1} | {lost: 2} if lost else "abc")


def test_a_full_server_is_asked_again(choir: Choir, server: Server, tmp_path: Path) -> None:
    def full(text: str) -> tuple[int, dict[str, str]]:
        # More often than any other failure is tried.
        return (200, {}) if server.asked[text] > 5 else (429, {"retry-after": "0"})

    server.answer = full
    source = write(tmp_path / "in.jsonl", request("a", "a"), request("b", "b"))
    ran = choir("batch", "-i", str(source), "-o", str(tmp_path / "out.jsonl"))
    assert "2 lines" in ran.out
    assert server.asked == {"a": 6, "b": 6}


def test_requests_are_sent_at_once(choir: Choir, server: Server, tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def wait(text: str) -> tuple[int, dict[str, str]]:
        together.wait(300)
        return 200, {}

    server.answer = wait
    source = write(tmp_path / "in.jsonl", *(request(name, name) for name in "abcdefgh"))
    ran = choir("batch", "-i", str(source), "-o", str(tmp_path / "out.jsonl"), "--concurrency", "4")
    assert ran.status == 0, ran.err


@pytest.mark.parametrize(
    ("status", "foreign", "times"),
    [(503, False, 3), (504, False, 3), (500, True, 3), (401, False, 1), (403, False, 1)],
)
def test_a_server_that_cannot_answer_ends_the_run_and_loses_nothing(
    choir: Choir, server: Server, tmp_path: Path, status: int, foreign: bool, times: int
) -> None:
    def away(text: str) -> tuple[int, dict[str, str]]:
        server.foreign = foreign and text != "a"
        return 200 if text == "a" else status, {}

    server.answer = away
    source = write(tmp_path / "in.jsonl", request("a", "a"), request("b", "b"), request("c", "c"))
    target = tmp_path / "out.jsonl"
    arguments = ("batch", "-i", str(source), "-o", str(target), "--concurrency", "1")
    ran = choir(*arguments)
    assert ran.status == 1
    assert "1 of 3 lines are answered" in ran.err
    assert server.asked == {"a": 1, "b": times}
    assert [line["custom_id"] for line in read(target)] == ["a"]
    server.answer, server.foreign = lambda text: (200, {}), False
    assert choir(*arguments).status == 0
    assert [line["custom_id"] for line in read(target)] == ["a", "b", "c"]
    assert server.asked["a"] == 1


def test_a_fault_of_choirs_own_is_an_answer_and_is_counted_when_the_run_goes_on(
    choir: Choir, server: Server, tmp_path: Path
) -> None:
    server.answer = lambda text: (500 if text == "b" else 200, {})
    source = write(tmp_path / "in.jsonl", *(request(name, name) for name in "abc"))
    target = tmp_path / "out.jsonl"
    arguments = ("batch", "-i", str(source), "-o", str(target))
    ran = choir(*arguments)
    assert (ran.status, "2 answered, 1 refused by the server" in ran.out) == (0, True)
    write(source, *(request(name, name) for name in "abcd"))
    ran = choir(*arguments)
    assert "1 answered, 3 answered before (1 of them refused by the server)" in ran.out
    assert server.asked == {"a": 1, "b": 1, "c": 1, "d": 1}


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_stays_when_the_command_is_ended(
    choir: Choir, server: Server, tmp_path: Path, kind: signal.Signals
) -> None:
    held, stuck = threading.Event(), threading.Event()

    def hold(text: str) -> tuple[int, dict[str, str]]:
        if text == "c":
            stuck.set()
            held.wait(300)
        return 200, {}

    server.answer = hold
    source = write(tmp_path / "in.jsonl", *(request(name, name) for name in "abcd"))
    target = tmp_path / "out.jsonl"
    arguments = ("batch", "-i", str(source), "-o", str(target), "--concurrency", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert stuck.wait(300)
    process.send_signal(kind)
    _, said = process.communicate(timeout=300)
    held.set()
    if kind is signal.SIGINT:
        assert process.returncode == 130
        assert "2 of 4 lines are answered" in said
    assert [line["custom_id"] for line in read(target)] == ["a", "b"]
    assert choir(*arguments).status == 0
    assert [line["custom_id"] for line in read(target)] == ["a", "b", "c", "d"]
    assert server.asked == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_files_that_cannot_be_used(choir: Choir, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", request("a"))
    other = write(tmp_path / "other.txt", "no batch")
    for target, words in ((source, "same file"), (other, "not the output of a batch")):
        ran = choir("batch", "-i", str(source), "-o", str(target))
        assert ran.status == 2
        assert words in ran.err
    assert other.read_text() == "no batch\n"
    ran = choir("batch", "-i", str(tmp_path / "none"), "-o", str(tmp_path / "out"))
    assert (ran.status, "cannot be read" in ran.err) == (2, True)
