"""`choir batch`: answers the requests in a file, in OpenAI's batch format."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import httpx
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from choir_cli.batch.answers import Answers
from choir_cli.batch.asking import PATIENCE, Asker, Counts, ask_all
from choir_cli.batch.requests import count_lines, read_requests
from choir_cli.connection import Token, Url
from choir_cli.console import UsageError, out
from choir_client import ChoirError
from serve.terminal.screen import Screen
from serve.terminal.words import counted

LINE_SECONDS = 10.0
"""How often a pipe gets a line."""
TIMEOUT = httpx.Timeout(None, connect=5.0)
"""The server limits how long an answer takes."""


def batch(
    source: Annotated[
        Path, typer.Option("--input", "-i", help="The file of requests, one JSON object a line.")
    ],
    target: Annotated[
        Path, typer.Option("--output", "-o", help="The file that gets an answer a line.")
    ],
    concurrency: Annotated[
        int, typer.Option(min=1, max=100, help="How many requests are sent at once.")
    ] = 16,
    url: Url = None,
    token: Token = None,
) -> None:
    """Answer many requests from a file, in OpenAI's batch format.

    A line of the input is {"custom_id", "method": "POST", "url", "body"}, where url is /v1/chat/completions,
    /v1/completions, /v1/responses, /v1/predict, /v1/embeddings or /classify. A line of the output is
    {"id", "custom_id", "response", "error"}, in the order in which answers come. The same command again goes on where
    it was ended.
    """
    if source.resolve() == target.resolve():
        raise UsageError(
            "--input and --output are the same file: name another one for the answers."
        )
    total = count_lines(source)
    counts = Counts()
    with Answers(target) as answers:
        asking = _asked(source, answers, counts, concurrency, total, url, token)
        try:
            asyncio.run(asking)
        except (ChoirError, KeyboardInterrupt):
            Screen(stderr=True).say(
                f"{counts.done:,} of {counted(total, 'line')} are answered in {target}. The same command again goes on."
            )
            raise
    out.say(f"{counted(total, 'line')} in {target}: {_said(counts)}.")
    if counts.bad == total:
        out.say(f"No line is a request; {target} says of each why.")
        raise typer.Exit(1)


async def _asked(
    source: Path,
    answers: Answers,
    counts: Counts,
    concurrency: int,
    total: int,
    url: str | None,
    token: str | None,
) -> None:
    async with Asker(url, token, timeout=TIMEOUT, retries=PATIENCE) as asker:
        with _progress(total) as show:
            await ask_all(asker, read_requests(source), answers, counts, concurrency, show)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Counts], None]]:
    """Yield what shows the counts on standard error: a bar on a terminal, else a line now and then."""
    screen = Screen(stderr=True)
    if not screen.is_terminal:
        last = monotonic()

        def say(counts: Counts) -> None:
            nonlocal last
            if monotonic() - last >= LINE_SECONDS:
                last = monotonic()
                screen.say(f"{counts.done:,} of {counted(total, 'line')}: {_said(counts)}.")

        yield say
        return
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        row = progress.add_task("batch", total=total, said="")
        yield lambda counts: progress.update(row, completed=counts.done, said=_said(counts))


def _said(counts: Counts) -> str:
    parts = [f"{counts.answered:,} answered"]
    if counts.before:
        refused = counts.refused_before
        among = f" ({refused:,} of them refused by the server)" if refused else ""
        parts.append(f"{counts.before:,} answered before{among}")
    if counts.refused:
        parts.append(f"{counts.refused:,} refused by the server")
    if counts.bad:
        parts.append(f"{counts.bad:,} not sent")
    return ", ".join(parts)
