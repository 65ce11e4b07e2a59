"""Merges the members of an ensemble into one adapter, and writes it as a rung of its leaderboard."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.adapter import AdapterError, has_head, inspect_adapter
from serve.base.folder import BaseShapes
from serve.bundle import Bundle, BundleError
from serve.manifest import Ensemble, Member
from training.leaderboard.board import RungKind
from training.leaderboard.labels import draft
from training.leaderboard.rungs import write_rung
from training.manifest import whole_ensemble
from training.merging.heads import write_merged_head
from training.merging.lora import Recipe, merged_lora


@dataclass(frozen=True)
class Merged:
    """A merged adapter in its bundle."""

    rung: str
    file: Path
    """The manifest that serves it."""
    rank: int
    members: tuple[str, ...]
    """The members that it was made of."""


def merge_ensemble(bundle: Bundle, ensemble: str, how: Recipe) -> Merged:
    """Merge all members of an ensemble (`choir merge`), by the manifest's weights if it serves a weighted average, else
    by equal weights.

    Raises BundleError if the members cannot be merged."""
    whole = whole_ensemble(bundle, ensemble)
    weights = whole.weights()
    if whole.fusion.method != "weighted_average":
        weights = [1 / len(weights)] * len(weights)
    named = list(zip(whole.members, weights, strict=True))
    used = [(member, weight) for member, weight in named if weight]
    members = [member for member, _ in used]
    with merged_adapter(bundle, members, [weight for _, weight in used], how) as folder:
        return add_rung(bundle, whole, folder, f"merged-{how.method}", "merged", members)


@contextmanager
def merged_adapter(
    bundle: Bundle, members: Sequence[Member], weights: Sequence[float], how: Recipe
) -> Iterator[Path]:
    """Yield a folder with the merge of the members' adapters, and of their heads if they have any. Raises
    BundleError."""
    folders = [_lora_of(bundle, member) for member in members]
    with merged_lora(bundle, folders, weights, how) as folder:
        if bundle.base_kind() == "encoder" and any(map(has_head, folders)):
            on_disk = bundle.base_on_disk()
            base = None if on_disk is None else BaseShapes.read(on_disk)
            write_merged_head(folders, weights, folder, base)
        yield folder


def add_rung(
    bundle: Bundle,
    ensemble: Ensemble,
    folder: Path,
    rung: str,
    kind: RungKind,
    members: Sequence[Member],
) -> Merged:
    """Add the adapter in `folder`, which was made of `members`, to the bundle as a rung that nothing is fitted for yet.
    Raises BundleError for an adapter that no engine would serve."""
    try:
        info = inspect_adapter(
            folder,
            base=bundle.base_folder,
            max_rank=None,
            base_kind=bundle.base_kind(),
            head_rows=ensemble.head_rows,
        )
    except AdapterError as error:
        raise BundleError(f"The merged adapter cannot be served: {error}") from error
    ref = bundle.add_adapter(f"{ensemble.name[:40]}-{rung}", folder)
    manifest = draft(ensemble, [Member(name=rung, adapters=[ref])])
    names = tuple(member.name for member in members)
    file = write_rung(bundle, rung, kind, manifest, {"members": list(names)})
    return Merged(rung, file, info.rank, names)


def averaged(bundle: Bundle, members: Sequence[Member], max_rank: int) -> Recipe:
    """Return the recipe for the average of the members' weights: exact by `cat`, or the closest LoRA of rank `max_rank`
    if the sum of their ranks is more. Raises BundleError."""
    ranks = [inspect_adapter(_lora_of(bundle, member)).rank for member in members]
    return Recipe("cat" if sum(ranks) <= max_rank else "svd", max_rank=max_rank)


def _lora_of(bundle: Bundle, member: Member) -> Path:
    """Return the folder of a member's only adapter, a LoRA. Raises BundleError."""
    if len(member.adapters) == 1:
        folder = bundle.adapter_dir(member.adapters[0])
        if inspect_adapter(folder).kind == "lora":
            return folder
    raise BundleError(
        f"Member {member.name!r} is not one LoRA, and only LoRAs can be merged in weight space; distil the ensemble "
        "instead."
    )
