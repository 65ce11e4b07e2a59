"""How well images find their captions, and captions their images (`choir evaluate --captions`): recall@k over the
vectors of a CLIP or SigLIP, without heads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.terminal.screen import Screen
from serve.terminal.sheet import Column, Sheet, number
from serve.terminal.words import counted as in_words
from training.data.loading import load_rows
from training.evaluation.rows.columns import IMAGE, has_towers
from training.execution.progress_table import ProgressTable
from training.execution.run import recorded_recipe
from training.offline.members import OfflineMembers
from training.progress import counted, quiet_libraries
from training.recipe import RecipeError

DEPTHS = (1, 5, 10)
"""Among how many of the closest a right one is looked for."""


@dataclass(frozen=True)
class Retrieval:
    """The recall of one system: k -> share of the queries that find a right one among the k closest."""

    system: str
    captions_of_images: dict[int, float]
    images_of_captions: dict[int, float]


def retrieve(
    bundle_path: Path, ensemble: str, data: Path, captions: str, json_path: Path | None
) -> None:
    """Print the recall of each member and of their average on the pairs in `data`, and write it to `json_path` if
    given. `captions` is the column of the texts; the images are in the recipe's column, or in `image`. Raises
    RecipeError and BundleError."""
    bundle = Bundle.open(bundle_path)
    manifest = bundle.ensemble(ensemble)
    if not has_towers(bundle):
        raise RecipeError(
            "--captions compares images with texts, and only a CLIP or SigLIP reads both"
        )
    recipe = recorded_recipe(bundle.path)
    own = recipe.data.images if recipe else []
    image = next(iter(own), IMAGE)
    quiet_libraries()
    rows = load_rows([data], [image, captions], images=[image]).rows
    pictures, picture_of = _distinct(list(rows[image]))
    texts, text_of = _distinct(list(rows[captions]))
    right = np.zeros((len(pictures), len(texts)), dtype=np.bool_)
    right[picture_of, text_of] = True
    members = OfflineMembers(bundle, manifest)
    inputs = [*pictures, *texts]
    total = len(inputs) * len(manifest.members)
    with ProgressTable() as table, counted(table, f"{ensemble}: {data.name}", total) as advance:
        vectors = members.vectors(inputs, advance)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    cosines = unit[:, : len(pictures)] @ unit[:, len(pictures) :].transpose(0, 2, 1)
    systems = {each.name: own for each, own in zip(manifest.members, cosines, strict=True)}
    systems["average"] = cosines.mean(axis=0)
    found = [retrieval(name, own, right) for name, own in systems.items()]
    what = f"{in_words(len(pictures), 'image')}, {in_words(len(texts), 'caption')}"
    Screen().print(sheet(f"{manifest.id} on {data.name}: {what}", found))
    if json_path is not None:
        json_path.write_text(
            json.dumps([asdict(each) for each in found], indent=2) + "\n", encoding="utf-8"
        )


def retrieval(system: str, cosines: NDArray[np.float64], right: NDArray[np.bool_]) -> Retrieval:
    """Return the recall from cosines [images, captions] and the pairs that belong together [images, captions]."""
    return Retrieval(system, recall(cosines, right), recall(cosines.T, right.T))


def recall(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[int, float]:
    """Return recall@k of queries in rows [queries, found]: the share of them for which fewer than k wrong ones score as
    high as the best right one. So a tie counts against the query."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    before = (~right & (scores >= best)).sum(axis=1)
    return {depth: float((before < depth).mean()) for depth in DEPTHS}


def sheet(title: str, found: Sequence[Retrieval]) -> Sheet:
    """Return the table of recalls: of captions that images find, and of images that captions find."""
    first, *others = DEPTHS
    headings = [
        heading
        for found_ones in ("captions", "images")
        for heading in (f"{found_ones} R@{first}", *(f"R@{depth}" for depth in others))
    ]
    shown = Sheet(title, [Column("system"), *map(number, headings)])
    for each in found:
        figures = [*each.captions_of_images.values(), *each.images_of_captions.values()]
        shown.add_row(each.system, *(f"{figure:.3f}" for figure in figures))
    return shown


def _distinct(cells: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the distinct cells in order, and the place of each cell among them."""
    places = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    return list(places), [places[cell] for cell in cells]
