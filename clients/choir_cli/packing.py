"""The options that describe an ensemble without a bundle, shared by `choir pack` and `choir serve
--base`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choir_cli.console import UsageError
from choir_cli.parsing import numbers, read_labels, read_verbalizers, several

if TYPE_CHECKING:
    from serve.bundle import Bundle

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=DIR",
        help="A PEFT folder; repeat it for each member, and for a member's second adapter.",
    ),
]
Task = Annotated[
    str | None, typer.Option("--task", help="classification, multilabel, regression or generation.")
]
Fusion = Annotated[
    str | None, typer.Option("--fusion", help="average, weighted_average, vote or product.")
]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="Labels: one a line, or a JSON list.")
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="NAME=NUMBER", help="A member's weight; equal without."),
]
Template = Annotated[
    str, typer.Option("--template", help="The prompt around {text}, for a causal base.")
]
Verbalizers = Annotated[
    Path | None,
    typer.Option("--verbalizers", help="JSON: the text that is scored for each label."),
]
EnsembleName = Annotated[str, typer.Option("--name", help="The ensemble's name.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a hub id.")]


def pack_bundle(
    out: Path,
    *,
    base: str,
    adapters: list[str] | None,
    task: str | None,
    fusion: str | None,
    labels: Path | None,
    weights: list[str] | None,
    template: str,
    verbalizers: Path | None,
    name: str,
    revision: str | None,
) -> "Bundle":
    """Read the options and write the bundle `out`. Raises UsageError, or BundleError for what is in
    the folders.
    """
    if not adapters or task is None or fusion is None:
        raise UsageError("--base goes with --adapter NAME=DIR (at least one), --task and --fusion.")
    if task in ("classification", "multilabel") and labels is None:
        raise UsageError(f"--task {task} needs --labels FILE, in the order the adapters know.")
    from serve.pack import pack

    return pack(
        base,
        {
            member: [Path(folder) for folder in folders]
            for member, folders in several("--adapter", adapters).items()
        },
        out,
        task=task,
        fusion=fusion,
        labels=None if labels is None else read_labels(labels),
        weights=numbers("--weight", weights or []),
        template=template,
        verbalizers=None if verbalizers is None else read_verbalizers(verbalizers),
        name=name,
        revision=revision,
    )
