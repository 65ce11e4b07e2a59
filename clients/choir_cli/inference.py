"""`choir predict` and `choir chat`: one request, or a conversation."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from choir_cli.connection import ModelName, Token, Url, only_ensemble
from choir_cli.console import UsageError, complain, out, show_json, table
from choir_client import (
    Choir,
    ChoirError,
    ClassificationItem,
    ClassificationMember,
    Input,
    MemberPrediction,
    MultilabelItem,
    MultilabelMember,
    Prediction,
    PredictionItem,
    RegressionItem,
    RegressionMember,
    image_part,
)
from choir_client import image as image_input
from serve.terminal.sheet import Column, Sheet, number
from serve.terminal.words import counted

Content = TypeVar("Content")


def predict(
    text: Annotated[
        list[str] | None, typer.Argument(help="The texts.", show_default="the lines of stdin")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="Second text of a pair, for an ensemble that reads pairs. Give one for each text, in order."
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image to ask about: a PNG, JPEG or WebP, for a base that reads images. Repeat for several."
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Each image and the text of its number are one input, for a base that writes about images.",
        ),
    ] = False,
    model: ModelName = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD|JSON",
            help="Fuse by this method instead of the ensemble's, or as this JSON says, such as "
            '\'{"abstain": {"risk": 0.02}}\'.',
        ),
    ] = None,
    members: Annotated[
        bool, typer.Option("--members", help="Also show the answer of each member.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the server's answer as JSON.")
    ] = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Ask an ensemble for the label, the labels or the value of each text or image."""
    texts = text or []
    if not texts and (together or not image):
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts and not image:
        raise UsageError("There is no text: give it as an argument, or one on each line of stdin.")
    if pair and len(pair) != len(texts):
        raise UsageError(
            f"For {counted(len(texts), 'text')} there must be as many --pair, not {len(pair)}: give one for each."
        )
    images = [_read(image_input, file) for file in image or []]
    shown = [*texts, *map(str, image or [])]
    inputs: list[Input] = [*texts, *images]
    if together:
        if pair or len(images) != len(texts):
            raise UsageError(
                "--together takes as many images as texts, and no --pair; there are "
                f"{counted(len(images), 'image')} and {counted(len(texts), 'text')}."
            )
        inputs = [{**one, "text": two} for one, two in zip(images, texts, strict=True)]
        shown = [f"{one}: {two}" for one, two in zip(image or [], texts, strict=True)]
    elif pair:
        pairs = zip(texts, pair, strict=True)
        inputs = [*({"text": one, "text_pair": two} for one, two in pairs), *images]
    how = _fusion(fusion) if fusion else None
    with Choir(url, token) as choir:
        answer = choir.predict(
            model or only_ensemble(choir),
            inputs,
            fusion=how,
            return_members=members,
        )
    if json:
        show_json(answer.model_dump(mode="json", by_alias=True, exclude_unset=True))
    else:
        heading = "input" if image else "text"
        out.print(_view(answer, shown, heading))


def _fusion(given: str) -> dict[str, Any]:
    """Return a request's `fusion`: from the name of a method, or from JSON. Raises UsageError."""
    if not given.lstrip().startswith("{"):
        return {"method": given}
    try:
        fusion: dict[str, Any] = json.loads(given)
    except ValueError as error:
        raise UsageError(f"--fusion is no JSON object: {error}.") from None
    return fusion


def _read(kind: Callable[[Path], Content], file: Path) -> Content:
    """Return the image in a file as an input or a part of a message. Raises UsageError."""
    try:
        return kind(file)
    except OSError as error:
        raise UsageError(f"The image {file} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise UsageError(f"The file {error}.") from None


def _view(answer: Prediction, texts: list[str], heading: str) -> Sheet:
    """Return the answers as a table. `texts` are the inputs: texts, and names of images."""
    names = list(dict.fromkeys(each.name for item in answer.data for each in item.members or []))
    chosen = [_chosen(item) for item in answer.data]
    columns = [*_COLUMNS[type(answer.data[0])], *chosen[0]]
    view = table(answer.model, heading, *columns, *names)
    for text, item, more in zip(texts, answer.data, chosen, strict=True):
        # A row has no answer of a member that was not asked.
        said = {member.name: _said(member) for member in item.members or []}
        view.add_row(text, *_cells(item), *more.values(), *(said.get(name) for name in names))
    return view


_COLUMNS: dict[type[PredictionItem], list[str | Column]] = {
    ClassificationItem: ["label", number("probability"), number("disagreement")],
    MultilabelItem: ["labels", "probabilities", number("disagreement")],
    RegressionItem: [number("value"), number("std")],
}


def _chosen(item: PredictionItem) -> dict[str, str]:
    """Return the columns that an answer has only if it may abstain, or if some members are left out."""
    if not isinstance(item, ClassificationItem):
        return {}
    columns = {}
    if item.members_asked is not None:
        columns["asked"] = str(item.members_asked)
    if item.abstained is not None:
        columns["abstained"] = "yes" if item.abstained else "no"
    return columns


def _cells(item: PredictionItem) -> list[str]:
    """Return the cells of an answer's own columns."""
    if isinstance(item, RegressionItem):
        return [_said(item), _figure(item.std)]
    if isinstance(item, MultilabelItem):
        chosen = (_figure(item.probabilities.get(label)) for label in item.labels)
        return [_said(item), ", ".join(chosen), _figure(item.disagreement)]
    assert isinstance(item, ClassificationItem)
    return [_said(item), _figure(item.probabilities.get(item.label)), _figure(item.disagreement)]


def _said(item: PredictionItem | MemberPrediction) -> str:
    """Return the label, the labels or the value as text."""
    if isinstance(item, RegressionItem | RegressionMember):
        return f"{item.value:.3f}"
    if isinstance(item, MultilabelItem | MultilabelMember):
        return ", ".join(item.labels) or "none"
    assert isinstance(item, ClassificationItem | ClassificationMember)
    return item.label


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def chat(
    model: ModelName = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image that the first message is about: a PNG, JPEG or WebP, for a base that reads images. "
            "Repeat for several."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of one answer.")] = 256,
    temperature: Annotated[
        float,
        typer.Option(help="Randomness of the sampling. At 0 it always picks the likeliest token."),
    ] = 0.0,
    url: Url = None,
    token: Token = None,
) -> None:
    """Talk with an ensemble; answers are streamed. An empty line or Ctrl-D ends the conversation.

    If the messages come from a pipe and one of them was refused, the status is 1.
    """
    images = [_read(image_part, file) for file in image or []]
    with Choir(url, token) as choir:
        name = model or only_ensemble(choir)
        messages: list[dict[str, Any]] = []
        refused = False
        for line in _lines(f"{name}> "):
            first = images and not messages
            content = [*images, {"type": "text", "text": line}] if first else line
            messages.append({"role": "user", "content": content})
            answer = ""
            try:
                for chunk in choir.stream_chat(
                    name, messages, max_tokens=max_tokens, temperature=temperature
                ):
                    typer.echo(chunk.text, nl=False)
                    answer += chunk.text
            except ChoirError as error:
                # One refused turn, such as one that is too long, does not end the conversation.
                messages.pop()
                complain(error)
                refused = True
                continue
            typer.echo()
            messages.append({"role": "assistant", "content": answer})
    if refused and not sys.stdin.isatty():
        raise typer.Exit(1)


def _lines(prompt: str) -> Iterator[str]:
    """Yields what is typed, line by line. Only a terminal shows the prompt."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input(prompt if typed else "").strip()
        except EOFError:
            if typed:
                typer.echo()
            return
        if not line:
            return
        yield line
