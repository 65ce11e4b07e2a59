"""The options that describe an ensemble: `choir pack` and `choir serve --base` share them."""

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
        help="PEFT folder of the member NAME. Repeat for each member, and for a second adapter of a member.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", help="Task: classification, multilabel, regression or generation."),
]
Fusion = Annotated[
    str | None,
    typer.Option(
        "--fusion",
        help="Fusion method: average, weighted_average or vote; for generation also product or mbr.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="File with the labels in the adapters' order: one on each line, or a JSON list.",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="NAME=NUMBER",
        help="Weight of a member. Repeat for each.",
        show_default="equal weights",
    ),
]
Template = Annotated[
    str,
    typer.Option("--template", help="The prompt for a causal base; {text} stands for the text."),
]
Verbalizers = Annotated[
    Path | None,
    typer.Option(
        "--verbalizers", help="JSON file that maps each label to the text that stands for it."
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="CLIP and SigLIP without heads: a text with {label}. Repeat for several, which are averaged.",
    ),
]
EnsembleName = Annotated[str, typer.Option("--name", help="Name of the ensemble.")]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Revision of the base, if --base is a hub id.")
]


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
    prompts: list[str] | None,
    name: str,
    revision: str | None,
    record_sources: bool = False,
) -> "Bundle":
    """Write the bundle `out` as the options say, and return it. See `pack` for `record_sources`.

    Raises UsageError for a wrong or missing option, BundleError for folders that cannot be packed.
    """
    if not (adapters or prompts) or task is None or fusion is None:
        raise UsageError("--base needs --task, --fusion and at least one --adapter NAME=DIR.")
    if task in ("classification", "multilabel") and labels is None:
        raise UsageError(
            f"--task {task} needs --labels FILE, with the labels in the adapters' order."
        )
    from serve.base.packages import PACKAGES, packaged_base
    from serve.pack import pack

    packaged = base in PACKAGES and not Path(base).is_dir()
    return pack(
        str(packaged_base(base)) if packaged else base,
        {
            member: [Path(folder) for folder in folders]
            for member, folders in several("--adapter NAME=DIR", adapters or []).items()
        },
        out,
        task=task,
        fusion=fusion,
        labels=None if labels is None else read_labels(labels),
        weights=numbers("--weight NAME=NUMBER", weights or []),
        template=template,
        verbalizers=None if verbalizers is None else read_verbalizers(verbalizers),
        prompts=prompts or [],
        name=name,
        revision=revision,
        record_sources=record_sources,
    )
