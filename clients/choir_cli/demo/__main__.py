"""Train the example, serve it, ask it, swap an adapter under load, and print what happened.

With DEMO_EXIT=1 the server stops at the end, and the status is 0 only if everything worked. DEMO_PORT sets the
port; the default is 8000.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from choir_cli.console import UsageError, fail, out, table
from choir_cli.demo.plan import Plan
from choir_cli.demo.scoring import Score, scores, with_times
from choir_cli.demo.server import Server, require_free
from choir_cli.demo.swapping import Swap, swap_under_load
from choir_cli.demo.trainer import Trainer
from choir_client import Choir, ClassificationPrediction

FOLDER = Path(".choir-demo")
BUNDLE = FOLDER / "bundle"
CANDIDATE = BUNDLE / "candidates" / "intents-a-retrained"
ENSEMBLE, MEMBER = "intents", "a"
TEST_ROWS = 120


def main() -> None:
    # The demo talks only to this machine, whatever proxy is set.
    os.environ["NO_PROXY"] = "127.0.0.1"
    # On SIGTERM, leave as on Ctrl-C: through the contexts that stop the server and the training.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    port = _port()
    stop_at_end = os.environ.get("DEMO_EXIT", "") not in ("", "0")
    # Check now, not after minutes of training.
    require_free(port)
    plan = Plan()
    plan.show()
    trainer = Trainer(_recipe(), BUNDLE)
    server = Server(BUNDLE, port, FOLDER / "store", FOLDER / "serve.log")
    with contextlib.ExitStack() as stack:
        stack.callback(trainer.stop)
        with plan.part("train"):
            trainer.start()
            trainer.wait_until_servable()
            # The engine takes its time to start, while the training computes its last figures.
            shutil.rmtree(FOLDER / "store", ignore_errors=True)
            stack.enter_context(server)
            trainer.wait()
        with plan.part("serve"):
            waited = server.wait_until_ready()
            out.print(f"ready at {server.url} after {waited:.0f} s more")
        with Choir(server.url) as choir:
            worked = _tour(choir, plan)
        if not stop_at_end:
            out.print(f"\nThe server keeps running at {server.url}; Ctrl-C stops it.")
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
        status = server.stop()
        if status != 0:
            out.print(f"The server did not stop cleanly: status {status}.")
    sys.exit(0 if worked and status == 0 else 1)


def _tour(choir: Choir, plan: Plan) -> bool:
    from serve.bundle import Bundle
    from serve.fusion.fuse import Fusion
    from training.example import messages
    from training.recipe import load_recipe

    recipe = load_recipe(_recipe())
    example, own = recipe.data.example, recipe.find(ENSEMBLE)
    assert example is not None, "the example's recipe generates its data"
    assert own is not None, "the example's recipe has the ensemble"
    rows = messages.rows("test", TEST_ROWS, example.seed)
    texts = [row["text"] for row in rows]
    bundle = Bundle.open(BUNDLE)
    ensemble = bundle.ensemble(ENSEMBLE)
    methods = Fusion.from_manifest(ensemble, bundle.fusion_path(ensemble)).methods
    teams = {each.name: each.rows.values[0] for each in own.members if each.rows is not None}

    with plan.part("ask"):
        _ask(choir, texts[:4], teams)
        _stream(choir, texts[0])
    with plan.part("measure"):
        found: list[Score] = []
        with out.status("asking every member and every fusion method ...") as status:
            for score in scores(choir, ENSEMBLE, list(teams), methods, rows):
                status.update(f"asking every member and every fusion method ... {score.name}")
                found.append(score)
        _show_scores(found, ensemble.fusion.method, teams)
    with plan.part("swap"):
        swap = swap_under_load(choir, ENSEMBLE, MEMBER, CANDIDATE, texts)
        swap.show()
    with plan.part("what happened"):
        _show_end(swap, found)
    plan.show_times()
    out.print(
        "\nNext: .venv/bin/choir status, .venv/bin/choir rollback intents, "
        f".venv/bin/choir chat --model replies; {BUNDLE}/report/index.html; README.md"
    )
    return swap.worked


def _ask(choir: Choir, texts: Sequence[str], teams: Mapping[str, str]) -> None:
    answer = choir.predict(ENSEMBLE, texts, return_members=True)
    assert isinstance(answer, ClassificationPrediction)
    said = ", ".join(f"{member} by {team}'s messages" for member, team in teams.items())
    out.say(f"predict, answered by {answer.model} (members: {said}):")
    for text, item in zip(texts, answer.data, strict=True):
        alone = ", ".join(f"{member.name} {member.label}" for member in item.members or [])
        share = item.probabilities[item.label]
        out.say(f"  {text}")
        out.say(f"    {alone} -> {item.label} {share:.2f}")


def _stream(choir: Choir, text: str) -> None:
    """Print the streamed answers of one member, and of all members fused at every token."""
    question = [{"role": "user", "content": text}]
    out.print(f"chat, streamed: {text}")
    for model in (f"replies/{MEMBER}", "replies"):
        print(f"  {model}: ", end="")
        for chunk in choir.stream_chat(model, question, max_tokens=48, temperature=0):
            print(chunk.text, end="", flush=True)
        print()


def _show_scores(found: Sequence[Score], served: str, teams: Mapping[str, str]) -> None:
    """Print the accuracy on each team's messages: a member knows those of its own team best."""
    view = table(
        f"{TEST_ROWS} test messages over HTTP: accuracy on each team's, and on all",
        *("", *teams.values(), "all", "median", "passes"),
    )
    for score in found:
        name = f"{score.name} (served)" if score.name == served else score.name
        own = teams.get(score.name)
        view.add_row(
            f"{name} ({own})" if own else name,
            *(f"{score.by_team[team]:.2f}" for team in teams.values()),
            f"{score.accuracy:.3f}",
            f"{score.latency * 1000:.0f} ms",
            str(score.passes),
        )
    out.print(view)


def _show_end(swap: Swap, found: Sequence[Score]) -> None:
    from training.leaderboard.board import read_board
    from training.leaderboard.table import show_board

    swap.show()
    for name in ("replies", ENSEMBLE):
        board = read_board(BUNDLE, name)
        assert board is not None, "the training ends in the leaderboards"
        show_board(with_times(board, found) if name == ENSEMBLE else board, BUNDLE, out)


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
