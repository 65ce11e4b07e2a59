"""An engineer with a base and three LoRAs follows the README, from packing to stopping the server."""

import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from choir_client import Choir, ChoirError
from serve.digest import folder_digest
from tests.journeys.shell import Shell, commands
from tests.serve import tiny
from tests.service.running import START_SECONDS, free_port

README = Path(__file__).parents[2] / "README.md"
GUIDE = commands(README)


def told(beginning: str) -> str:
    """Return the README's one command that begins so."""
    (command,) = [each for each in GUIDE if each.startswith(beginning)]
    return command


def test_the_headline_serves_what_the_guide_packs() -> None:
    """So the journey below proves the headline's options too."""
    (headline, *chat), packed = GUIDE[:2], told("choir pack --out replies")

    assert chat == ["choir chat"]
    assert headline.startswith("choir serve --base ")
    named = shlex.split(packed.replace("choir pack --out replies --name replies", "choir serve"))
    assert shlex.split(headline) == named


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with what the engineer has: a base, three LoRAs, a newer one, and the labels."""
    folder = tmp_path_factory.mktemp("engineer")
    base = tiny.causal_base(folder / "my-base")
    for seed, name in enumerate(("lora-a", "lora-b", "lora-c", "new/lora-a"), start=1):
        tiny.lora(base, folder / name, seed=seed)
    (folder / "labels.txt").write_text("card\ntransfer\naddress\n")
    port = str(free_port())
    return Shell(
        folder,
        CHOIR_PORT=port,
        CHOIR_URL=f"http://127.0.0.1:{port}",
        CHOIR_DTYPE="float32",
        CHOIR_ENGINE='{"kv_cache_memory_bytes": 268435456}',
    )


@contextlib.contextmanager
def _serving(shell: Shell, command: str) -> Iterator[Choir]:
    """Run `choir serve` as in a terminal of its own, and stop it with Ctrl-C in the end."""
    log = shell.folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=shell.folder,
            env=shell.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with Choir(shell.environment["CHOIR_URL"]) as choir:
            _wait(choir, process, log)
            yield choir
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=90)
    finally:
        process.kill()
    said = log.read_text()
    assert status == 0, said
    assert "\x1b" not in said
    assert "Traceback" not in said


def _wait(choir: Choir, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ChoirError):
            if choir.ready().ok:
                return
        time.sleep(0.5)
    raise AssertionError(f"not ready after {START_SECONDS} s: {log.read_text()}")


@pytest.mark.engine
@pytest.mark.slow
def test_the_engineers_way_through_the_readme(shell: Shell) -> None:
    for name in ("replies", "intents"):
        packed = shell.terminal(told(f"choir pack --out {name}"))
        assert packed.text == f"{name}: {name}@1 with 3 members, verified.\n"
    assert shell.both(told("choir verify")).text == "intents has no problems: intents@1.\n"

    with _serving(shell, told("choir serve intents replies")) as choir:
        predicted = shell.both(told("choir predict"))
        assert predicted.status == 0
        answer = choir.predict("intents", "where is my parcel?", return_members=True)
        (label,) = answer.labels
        assert {"intents@1", "where", "parcel?", "label", "probability", label} <= predicted.words

        chatted = shell.terminal(told("choir chat --model"), "where is my card\n\n")
        said = choir.chat(
            "replies",
            [{"role": "user", "content": "where is my card"}],
            temperature=0,
            max_tokens=256,
        )
        assert chatted.status == 0
        assert said.text
        assert _letters(said.text) in _letters(chatted.text)

        swapped = shell.terminal(told("choir swap"))
        assert swapped.status == 0, swapped.text
        assert choir.predict("intents", "x").model == "intents@2"
        status = shell.both(told("choir status"))
        new = folder_digest(shell.folder / "new" / "lora-a").removeprefix("sha256:")
        assert {"intents", "replies"} <= status.words
        assert new[:12] in status.text

        refused = shell.terminal(told("choir swap"))
        assert refused.status == 1
        assert refused.text.startswith("choir: ")
        assert "version" in refused.text

        assert shell.terminal(told("choir rollback")).status == 0
        assert choir.predict("intents", "x").model == "intents@1"
        audit = shell.both("choir rollouts --audit")
        for entry in choir.audit():
            assert {entry.action, entry.actor.split()[0]} <= audit.words


def _letters(text: str) -> str:
    """The text without spaces: a terminal breaks lines."""
    return "".join(text.split())
