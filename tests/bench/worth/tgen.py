"""E2E's test inputs, answered by a bundle that is served and by TGen (Dusek and Jurcicek 2016), in one table."""

import asyncio
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from choir_client import AsyncChoir
from serve.bundle import Bundle
from serve.fusion.answers import choose_answer
from serve.labels import completion_prompt
from tests.bench.conftest import data_file
from tests.service.running import serving
from training.evaluation.metrics.resampling import Comparison
from training.evaluation.metrics.text import text_metrics
from training.execution.run import recorded_recipe

RUNS = range(5)
INPUTS = 300
AT_ONCE = 16
ENSEMBLE = "describe"


def tgen(folder: Path, bundle: Path | None) -> None:
    """Draw inputs, and print BLEU and chrF of TGen's five runs on them, of the members of `bundle`, of votes on whole
    answers, and of the members fused at every token. `folder` gets the server's log and the answers."""
    references: dict[str, list[str]] = defaultdict(list)
    with data_file("e2e_nlg/test.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            references[row["mr"]].append(row["ref"])
    inputs = list(references)
    drawn = sorted(np.random.default_rng(0).choice(len(inputs), INPUTS, replace=False).tolist())
    answers = {f"TGen, run {run}": [_run(run)[place] for place in drawn] for run in RUNS}
    if bundle is not None:
        folder.mkdir(parents=True, exist_ok=True)
        answers |= _served(bundle, [inputs[place] for place in drawn], folder)
    _show(answers, [references[inputs[place]] for place in drawn], bundle)


def _run(number: int) -> list[str]:
    """Return a run's answers, in the order in which the inputs first appear in test.csv."""
    return data_file(f"e2e_nlg/tgen/tgen-std.run{number}.txt").read_text("utf-8").splitlines()


def _served(bundle: Path, inputs: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Return the answers of each member and of the ensemble, from a server in bfloat16, and those that a vote and `mbr`
    choose among the members'."""
    ensemble = Bundle.open(bundle).ensemble(ENSEMBLE)
    prompts = [completion_prompt(ensemble.template, each) for each in inputs]
    names = [f"{ENSEMBLE}/{member.name}" for member in ensemble.members]
    recipe = recorded_recipe(bundle)
    own = recipe.find(ENSEMBLE) if recipe else None
    assert own is not None, f"{bundle} must be made by a recipe with the ensemble {ENSEMBLE}"
    limit = own.max_new_tokens
    arguments = ("--dtype", "bfloat16", "--store", folder / "store")
    with serving(bundle, *arguments, log=folder / "serve.log") as service:
        said = {
            name: asyncio.run(_ask(service.url, name, prompts, limit))
            for name in [*names, ENSEMBLE]
        }
    fused = said.pop(ENSEMBLE)
    rows = list(zip(*said.values(), strict=True))
    for method in ("vote", "mbr"):
        said[method] = [row[choose_answer(ensemble, row, method).winner] for row in rows]
    return said | {"average at every token": fused}


async def _ask(url: str, model: str, prompts: Sequence[str], limit: int) -> list[str]:
    places = asyncio.Semaphore(AT_ONCE)
    async with AsyncChoir(url, timeout=3600) as choir:

        async def answer(prompt: str) -> str:
            async with places:
                found = await choir.complete(model, prompt, max_tokens=limit, temperature=0)
            return found.text.strip()

        asked = [asyncio.create_task(answer(prompt)) for prompt in prompts]
        for each in track(asked, description=model):
            await each
    return [each.result() for each in asked]


def _show(
    answers: Mapping[str, Sequence[str]], rights: Sequence[Sequence[str]], bundle: Path | None
) -> None:
    names = list(answers)
    compared = Comparison([text_metrics(answers[name], rights) for name in names], len(rights))
    members = [place for place, name in enumerate(names) if name.startswith(f"{ENSEMBLE}/")]
    print(f"{len(rights)} inputs")
    for place, name in enumerate(names):
        bleu, chrf = (compared.interval(place, metric) for metric in ("bleu", "chrf"))
        line = (
            f"| {name} | {bleu.value:.2f} | {bleu.low:.2f} to {bleu.high:.2f} | {chrf.value:.2f} |"
        )
        if bundle is not None and place not in members and not name.startswith("TGen"):
            gap = compared.gap("bleu", place, members)
            line += f" {gap.value:+.2f} ({gap.low:+.2f} to {gap.high:+.2f}), p = {gap.p:.3f} |"
        print(line)
