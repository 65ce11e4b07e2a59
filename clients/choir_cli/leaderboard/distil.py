"""`choir distil`: make one adapter of an ensemble, which answers at one pass."""

from pathlib import Path
from typing import Annotated

import typer

from choir_cli.console import out, table


def distil(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="File with further texts, which need no labels: the ensemble labels them."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all texts.")] = 3,
    variations: Annotated[
        int,
        typer.Option(
            min=0, help="Texts to make from each training text, by leaving out and joining words."
        ),
    ] = 1,
) -> None:
    """Distil an ensemble into one adapter: a rung that answers at one pass."""
    from training.distilled import DistilOptions
    from training.distilled import distil as run
    from training.evaluation.tables import HEADINGS, number
    from training.execution.progress_table import ProgressTable
    from training.progress import quiet_libraries

    quiet_libraries()
    with ProgressTable() as progress_table:
        made = run(bundle, ensemble, rows, DistilOptions(epochs, variations), progress_table)
    first, second = made.metrics
    tempered = ", each with a temperature of its own" if first == "log_loss" else ""
    view = table(
        f"{made.rows} validation rows{tempered}",
        *("", HEADINGS[second], HEADINGS[first], "passes"),
    )
    for name, system, passes in (
        (f"best member ({made.best})", "best", 1),
        (f"ensemble ({made.method})", "ensemble", made.passes),
        ("distilled", "distilled", 1),
    ):
        scores = made.scores[system]
        view.add_row(
            name, number(scores[second], second), number(scores[first], first), str(passes)
        )
    out.print(view)
    kept = made.kept
    out.say(
        f"The ensemble has no better {HEADINGS[first]} than its best member, so there was nothing to keep."
        if kept is None
        else f"It keeps {kept:.0%} of what the ensemble gains over the best member in {HEADINGS[first]}."
    )
    out.say(
        f"The test rows judge it in `choir leaderboard {bundle} --ensemble {ensemble}`. To serve it under the same "
        "name:"
    )
    out.verbatim(f"choir swap {ensemble} --manifest {made.manifest}")
