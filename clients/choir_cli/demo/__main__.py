"""Train the example, serve it, ask it, swap an adapter under load, and print what happened.

With DEMO_EXIT=1 the server stops at the end, and the status is 0 only if everything worked. DEMO_PORT sets the
port; the default is 8000.
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
from choir_client import Choir, ChoirError, ClassificationPrediction

FOLDER = Path(".choir-demo")
BUNDLE = FOLDER / "bundle"
CANDIDATE = BUNDLE / "candidates" / "intents-a-retrained"
MEMBER = "a"
TEST_ROWS = 120
REQUESTS_BEFORE = 50
REQUESTS_AFTER = 50


@dataclass(frozen=True)
class Swap:
    """The answers that clients got while an adapter was replaced."""

    before: str
    after: str
    first_after: str
    """The version that answered the first request after the swap returned."""
    fit: str
    """The state of the fusion after the swap: `refitted` if it was fitted again for the new adapter."""
    seconds: float
    requests: int
    failures: Sequence[str]
    unexpected: Sequence[str]
    """Versions that answered, other than the two."""

    @property
    def worked(self) -> bool:
        return not self.failures and not self.unexpected and self.first_after == self.after


def main() -> None:
    # The demo talks only to this machine, whatever proxy is set.
    os.environ["NO_PROXY"] = "127.0.0.1"
    # On SIGTERM, leave as on Ctrl-C: through the context that stops the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    port = _port()
    stop_at_end = os.environ.get("DEMO_EXIT", "") not in ("", "0")
    # Check now, not after minutes of training.
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
    assert isinstance(answer, ClassificationPrediction)
    out.print(f"predict, answered by {answer.model}:")
    for text, item in zip(texts, answer.data, strict=True):
        alone = ", ".join(f"{member.name} {member.label}" for member in item.members or [])
        share = item.probabilities[item.label]
        out.print(f"  {text}", highlight=False)
        out.print(f"    {alone} -> {item.label} {share:.2f}", highlight=False)


def _stream(choir: Choir, text: str) -> None:
    """Print the streamed answers of one member, and of all members fused at every token."""
    question = [{"role": "user", "content": text}]
    out.print(f"chat, streamed: {text}")
    for model in (f"replies/{MEMBER}", "replies"):
        print(f"  {model}: ", end="")
        for chunk in choir.stream_chat(model, question, max_tokens=48, temperature=0):
            print(chunk.text, end="", flush=True)
        print()


def _swap(choir: Choir, texts: Sequence[str]) -> Swap:
    before = choir.predict("intents", texts[0]).model
    out.print(f"4 clients ask {before} without a pause, while {MEMBER} gets another adapter")
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
        unexpected=sorted(set(load.versions) - {before, after}),
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
    if swap.unexpected:
        out.print(f"  wrong: answers by {', '.join(swap.unexpected)}")
    out.print(
        "\nNext: .venv/bin/choir status, .venv/bin/choir rollback intents, "
        f".venv/bin/choir chat --model replies; {BUNDLE}/report/index.html; README.md"
    )


def _train() -> None:
    """Train into the demo's folder. Uses a finished run again, and continues an interrupted one."""
    out.rule("train")
    if BUNDLE.exists() and _choir_train("--resume") == 0:
        return
    # The run had another recipe, or it is damaged. The folder belongs to the demo, so start again.
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    if _choir_train() != 0:
        raise ChoirError("training failed; the reason is printed above")


def _choir_train(*flags: str) -> int:
    # Train in another process, so that its memory is free before the server starts.
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
