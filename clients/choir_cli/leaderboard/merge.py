"""`choir merge`: the LoRA members of an ensemble as one adapter."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from choir_cli.console import out as console


class Method(StrEnum):
    cat = "cat"
    svd = "svd"
    ties_svd = "ties_svd"
    dare_ties_svd = "dare_ties_svd"
    linear = "linear"
    uniform_soup = "uniform_soup"
    greedy_soup = "greedy_soup"


def merge(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    ensemble: Annotated[str, typer.Option(help="The ensemble's name.")],
    method: Annotated[
        list[Method],
        typer.Option(
            help="How to merge; repeat it for several. cat is the exact weighted sum of the updates, svd its closest "
            "approximation of a smaller rank. The soups average members with equal weights: all of them, or those that "
            "help on the validation rows.",
        ),
    ],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rank of the merged adapter, for the svd methods.",
            show_default="the sum of the members' ranks, at most --max-rank",
        ),
    ] = None,
    max_rank: Annotated[
        int, typer.Option(min=1, help="The largest rank that the engine takes.")
    ] = 64,
    density: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the values that the ties methods keep.")
    ] = 0.5,
) -> None:
    """Merge the LoRA members of an ensemble into one adapter, and write a manifest that serves it alone."""
    from serve.bundle import Bundle
    from training.execution.progress_table import ProgressTable
    from training.merging.lora import MERGES, Recipe
    from training.merging.merge import merge_ensemble
    from training.merging.soup import SOUPS, make_soup
    from training.progress import quiet_libraries

    quiet_libraries()
    opened = Bundle.open(bundle)
    made = []
    for way in MERGES:
        if way in method:
            how = Recipe(way, rank=rank, max_rank=max_rank, density=density)
            made.append(merge_ensemble(opened, ensemble, how))
    for soup in SOUPS:
        if soup in method:
            with ProgressTable() as watch:
                cooked = make_soup(opened, ensemble, soup, max_rank, watch)
            if cooked is None:
                console.print(f"{soup}: the best member alone; each other one makes it worse.")
            else:
                made.append(cooked)
    for merged in made:
        console.print(
            f"{merged.rung}: rank {merged.rank}, from {', '.join(merged.members)}: {merged.file}",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"Judge it: choir leaderboard {bundle} --ensemble {ensemble}", soft_wrap=True)
