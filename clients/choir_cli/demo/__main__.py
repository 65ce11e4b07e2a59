"""Train the example, serve it, ask it, swap an adapter under load, and say what happened.

DEMO_EXIT=1 stops the server at the end, with status 0 only if all worked; DEMO_PORT chooses another
port than 8000.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from choir_cli.console import UsageError, fail, out, table
from choir_cli.demo.load import Load
from choir_cli.demo.scoring import Score, scores
from choir_cli.demo.server import Server, require_free
from choir_client import Choir, ChoirError

FOLDER = Path(".choir-demo")
BUNDLE = FOLDER / "bundle"
CANDIDATE = BUNDLE / "candidates" / "intents-a-retrained"
MEMBER = "a"
TEST_ROWS = 120
REQUESTS_BEFORE = 50
REQUESTS_AFTER = 50


@dataclass(frozen=True)
class Swap:
    """What the clients saw while an adapter was replaced."""

    before: str
    after: str
    first_after: str
    """Version that answered the first request after the swap returned."""
    fit: str
    """Whether the fusion was fitted again for the new adapter, by what the bundle stores of it."""
    seconds: float
    requests: int
    failures: Sequence[str]
    strangers: Sequence[str]
    """Answers by any version but the two."""

    @property
    def worked(self) -> bool:
        return not self.failures and not self.strangers and self.first_after == self.after


def main() -> None:
    # The demo talks to this machine alone, whatever proxy is set for the rest of the world.
    os.environ["NO_PROXY"] = "127.0.0.1"
    # Being asked to end takes the same way out as Ctrl-C, past the server's own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    port = _port()
    stop_at_end = os.environ.get("DEMO_EXIT", "") not in ("", "0")
    # Said before minutes of training rather than after them.
    require_free(port)
    _train()
    shutil.rmtree(FOLDER / "store", ignore_errors=True)
    with Server(BUNDLE, port, FOLDER / "store", FOLDER / "serve.log") as server:
        out.rule("serve")
        out.print(f"ready at {server.url} after {server.wait_until_ready():.0f} s")
        with Choir(server.url) as choir:
            worked = _tour(choir)
        if not stop_at_end:
            out.print(f"\nThe server keeps running at {server.url}; Ctrl-C stops it.")
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
        status = server.stop()
        if status != 0:
            out.print(f"The server did not stop cleanly: status {status}.")
    sys.exit(0 if worked and status == 0 else 1)


def _tour(choir: Choir) -> bool:
    from serve.bundle import Bundle
    from serve.fusion.fuse import Fusion
    from training.example import messages
    from training.recipe import load_recipe

    example = load_recipe(_recipe()).data.example
    assert example is not None, "the example's recipe generates its data"
    rows = messages.rows("test", TEST_ROWS, example.seed)
    texts, labels = [row["text"] for row in rows], [row["intent"] for row in rows]
    bundle = Bundle.open(BUNDLE)
    ensemble = bundle.ensemble("intents")
    methods = Fusion.from_manifest(ensemble, bundle.fusion_path(ensemble)).methods

    out.rule("ask")
    _ask(choir, texts[:5])
    _stream(choir, texts[0])
    out.rule("measure")
    members = [member.name for member in ensemble.members]
    found: list[Score] = []
    with out.status("asking every member and every fusion method ...") as status:
        for score in scores(choir, "intents", members, methods, texts, labels):
            status.update(f"asking every member and every fusion method ... {score.name}")
            found.append(score)
    out.rule("swap")
    swap = _swap(choir, texts)
    out.rule("what happened")
    _show(found, ensemble.fusion.method, swap)
    return swap.worked


def _ask(choir: Choir, texts: Sequence[str]) -> None:
    answer = choir.predict("intents", texts, return_members=True)
    out.print(f"[bold]predict[/bold], answered by {answer.model}:")
    for text, item in zip(texts, answer.data, strict=True):
        alone = ", ".join(f"{member.name} {member.label}" for member in item.members or [])
        share = item.probabilities[item.label or ""]
        out.print(f"  {text}", highlight=False)
        out.print(f"    {alone} -> [bold]{item.label}[/bold] {share:.2f}", highlight=False)


def _stream(choir: Choir, text: str) -> None:
    """One member alone, and all members fused at every token."""
    question = [{"role": "user", "content": text}]
    out.print(f"[bold]chat[/bold], streamed: {text}")
    for model in (f"replies/{MEMBER}", "replies"):
        print(f"  {model}: ", end="")
        for chunk in choir.stream_chat(model, question, max_tokens=48, temperature=0):
            print(chunk.text, end="", flush=True)
        print()


def _swap(choir: Choir, texts: Sequence[str]) -> Swap:
    before = choir.predict("intents", texts[0]).model
    out.print(f"4 clients ask {before} without a pause; meanwhile {MEMBER} gets another adapter")
    with Load(choir.url, "intents", texts) as load:
        load.wait_for(REQUESTS_BEFORE)
        started = time.monotonic()
        rollout = choir.swap(
            "intents",
            members={MEMBER: CANDIDATE.resolve().as_uri()},
            expected_version=int(before.partition("@")[2]),
        )
        first_after = choir.predict("intents", texts[0]).model
        seconds = time.monotonic() - started
        load.wait_for(REQUESTS_AFTER)
        fit = choir.ensemble("intents").fusion_fit
    after = f"intents@{rollout.to_version}"
    return Swap(
        before=before,
        after=after,
        first_after=first_after,
        fit=str(fit.get("state")),
        seconds=seconds,
        requests=load.requests,
        failures=load.failures,
        strangers=sorted(set(load.versions) - {before, after}),
    )


def _show(found: Sequence[Score], served: str, swap: Swap) -> None:
    view = table(
        f"{TEST_ROWS} test messages over HTTP", "", "accuracy", "median latency", "member passes"
    )
    for score in found:
        view.add_row(
            f"{score.name} (served)" if score.name == served else score.name,
            f"{score.accuracy:.3f}",
            f"{score.latency * 1000:.0f} ms",
            str(score.passes),
        )
    out.print(view)
    out.print(
        f"swap {swap.before} -> {swap.after}: {swap.seconds:.1f} s, "
        f"{swap.requests} requests during it, failures: {len(swap.failures)}, fusion: {swap.fit}"
    )
    for problem in sorted(set(swap.failures))[:3]:
        out.print(f"  failed: {problem}")
    if swap.first_after != swap.after:
        out.print(f"  wrong: the first request after the swap was answered by {swap.first_after}")
    if swap.strangers:
        out.print(f"  wrong: answers by {', '.join(swap.strangers)}")
    out.print(
        "\nNext: .venv/bin/choir status, .venv/bin/choir rollback intents, "
        f".venv/bin/choir chat --model replies; {BUNDLE}/report/index.html; README.md"
    )


def _train() -> None:
    """Train into the demo's folder; a finished run is used again, an interrupted one goes on."""
    out.rule("train")
    if BUNDLE.exists() and _choir_train("--resume") == 0:
        return
    # Its recipe was another one, or it is damaged; the folder is the demo's own.
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    if _choir_train() != 0:
        raise ChoirError("training did not finish; its reason stands above")


def _choir_train(*flags: str) -> int:
    # A process of its own gives its memory back before the server starts.
    command = ("train", str(_recipe()), "--out", str(BUNDLE), *flags)
    return subprocess.run(
        [sys.executable, "-m", "choir_cli.main", *command], check=False
    ).returncode


def _recipe() -> Path:
    from training import example

    return Path(example.__file__).parent / "recipe.yaml"


def _port() -> int:
    value = os.environ.get("DEMO_PORT") or "8000"
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise UsageError(f"DEMO_PORT must be a port from 1 to 65535, not {value!r}.")
    return int(value)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        fail(error)
