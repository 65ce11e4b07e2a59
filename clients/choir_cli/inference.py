"""`choir predict` and `choir chat`: one request, or an interactive one."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from choir_cli.connection import ModelName, Token, Url, only_ensemble
from choir_cli.console import UsageError, out, show_json, table
from choir_client import Choir, ChoirError, Prediction


def predict(
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts; without any, the lines of stdin.")
    ] = None,
    model: ModelName = None,
    fusion: Annotated[str | None, typer.Option(help="Another fusion method.")] = None,
    members: Annotated[bool, typer.Option("--members", help="Also show each member.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Ask an ensemble for the label of each text."""
    texts = text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UsageError("There is no text to predict: give it as an argument or on stdin.")
    with Choir(url, token) as choir:
        answer = choir.predict(
            model or only_ensemble(choir),
            texts,
            fusion={"method": fusion} if fusion else None,
            return_members=members,
        )
    if json:
        show_json(answer.model_dump(mode="json", by_alias=True, exclude_unset=True))
    else:
        _show(answer, texts)


def _show(answer: Prediction, texts: list[str]) -> None:
    names = [member.name for member in answer.data[0].members or []]
    view = table(answer.model, "text", "label", "probability", "disagreement", *names)
    for text, item in zip(texts, answer.data, strict=True):
        view.add_row(
            text,
            item.label,
            f"{item.probabilities.get(item.label or '', 0.0):.3f}",
            "" if item.disagreement is None else f"{item.disagreement:.3f}",
            *(member.label for member in item.members or []),
        )
    out.print(view)


def chat(
    model: ModelName = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always gives the same answer.")] = 0.0,
    url: Url = None,
    token: Token = None,
) -> None:
    """Talk with an ensemble; answers are streamed. Ctrl-D or an empty line ends."""
    with Choir(url, token) as choir:
        name = model or only_ensemble(choir)
        messages: list[dict[str, Any]] = []
        for line in _lines(f"{name}> "):
            messages.append({"role": "user", "content": line})
            answer = ""
            try:
                for chunk in choir.stream_chat(
                    name, messages, max_tokens=max_tokens, temperature=temperature
                ):
                    typer.echo(chunk.text, nl=False)
                    answer += chunk.text
            except ChoirError as error:
                # One refused turn (too long, say) does not end the conversation.
                messages.pop()
                typer.echo(f"choir: {error}", err=True)
                continue
            typer.echo()
            messages.append({"role": "assistant", "content": answer})


def _lines(prompt: str) -> Iterator[str]:
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            typer.echo()
            return
        if not line:
            return
        yield line
