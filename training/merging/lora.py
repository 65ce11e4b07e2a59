"""Merges LoRAs into one by PEFT's `add_weighted_adapter`."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from serve.adapter import plain_adapter
from serve.adapter.folder import read_config
from serve.adapter.origin import record_base
from serve.base.folder import BaseShapes
from serve.bundle import Bundle, BundleError
from training.offline.base import load_base

Merge = Literal["cat", "svd", "ties_svd", "dare_ties_svd", "linear"]
MERGES: tuple[Merge, ...] = get_args(Merge)
"""PEFT's combination types.

`cat` stands the matrices side by side: the exact weighted sum of the updates, at the sum of the ranks. `svd` is its
closest approximation of a smaller rank. `ties_svd` (Yadav et al. 2023) keeps the largest values and the sign of the
majority, `dare_ties_svd` (Yu et al. 2024) random values instead of the largest. `linear` sums the matrices A and B each
by itself, by the roots of the weights. This is not the sum of the updates: each member's A also meets the others' B."""
DENSITY = 0.5
"""Share of the values that the ties methods keep."""
_MERGED = "merged"


@dataclass(frozen=True)
class Recipe:
    """How LoRAs are merged."""

    method: Merge
    rank: int | None = None
    """Of the merged LoRA, for the svd methods; None: the sum of the ranks, or `max_rank` if that is less."""
    max_rank: int = 64
    """The most that the engine takes."""
    density: float = DENSITY
    seed: int = 0
    """Of the values that `dare_ties_svd` drops."""


@contextmanager
def merged_lora(
    bundle: Bundle, folders: Sequence[Path], weights: Sequence[float], how: Recipe
) -> Iterator[Path]:
    """Yield a folder with the merge of the LoRAs in `folders` by `weights`, one each, without a head. It exists within
    the context.

    Raises BundleError if they cannot be merged so."""
    model = _loaded(bundle, folders)
    names = list(model.peft_config)
    _merge(model, names, weights, how)
    config = model.peft_config[_MERGED]
    # As the members name it: no path of this machine.
    config.base_model_name_or_path = read_config(folders[0])["base_model_name_or_path"]
    # The order of a set differs between processes, and so would the adapter's digest.
    config.target_modules = sorted(config.target_modules)
    with tempfile.TemporaryDirectory(prefix="choir-merge-") as scratch:
        model.save_pretrained(scratch, selected_adapters=[_MERGED], save_embedding_layers=False)
        folder = Path(scratch) / _MERGED
        (folder / "README.md").unlink(missing_ok=True)
        if bundle.base_folder is not None:
            record_base(folder, bundle.base_folder)
        yield folder


def _loaded(bundle: Bundle, folders: Sequence[Path]) -> PeftModel:
    """Return the base with all LoRAs, each with the plainest configuration that says the same."""
    base, _ = load_base(bundle)
    shapes = None if bundle.base_folder is None else BaseShapes.read(bundle.base_folder)
    model: PeftModel | None = None
    for number, folder in enumerate(folders):
        with plain_adapter(folder, shapes, bundle.base_kind()) as plain:
            if model is None:
                model = PeftModel.from_pretrained(base, str(plain), adapter_name=f"lora-{number}")
            else:
                model.load_adapter(str(plain), adapter_name=f"lora-{number}")
    if model is None:
        raise BundleError("There is no LoRA to merge.")
    for name, config in model.peft_config.items():
        # PEFT gives the merged LoRA the first one's way of choosing layers, of starting and of scaling, which would
        # lose layers of the others, change the base, or multiply the update by the root of the rank.
        config.target_modules = {
            module
            for module, layer in model.base_model.model.named_modules()
            if isinstance(layer, LoraLayer)
            and (name in layer.lora_A or name in layer.lora_embedding_A)
        }
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        config.modules_to_save = None
        config.use_rslora = False
        config.init_lora_weights = True
    return model


def _merge(model: PeftModel, names: Sequence[str], weights: Sequence[float], how: Recipe) -> None:
    ranks = [
        max([config.r, *config.rank_pattern.values()]) for config in model.peft_config.values()
    ]
    if how.method == "cat" and sum(ranks) > how.max_rank:
        raise BundleError(
            f"cat needs the sum of the members' ranks, {sum(ranks)}, and an engine takes {how.max_rank} by default. "
            f"Take svd, the closest LoRA of rank {how.max_rank}; or give --max-rank {sum(ranks)}, and serve with a "
            "max_lora_rank that is as large."
        )
    if how.method == "linear" and len(set(ranks)) > 1:
        raise BundleError(
            f"linear needs members of one rank, and theirs are {', '.join(map(str, ranks))}; take cat or svd."
        )
    rank = how.rank or min(sum(ranks), how.max_rank)
    if rank > how.max_rank:
        raise BundleError(
            f"The rank {rank} is more than an engine takes by default, {how.max_rank}; give --max-rank {rank} too, and "
            "serve with a max_lora_rank that is as large."
        )
    ties = "ties" in how.method
    torch.manual_seed(how.seed)
    model.add_weighted_adapter(
        list(names),
        # PEFT's ties takes the mean of the values that agree; weights that sum to 1 would divide twice.
        [weight * len(weights) for weight in weights] if ties else list(weights),
        _MERGED,
        combination_type=how.method,
        svd_rank=rank if how.method.endswith("svd") else None,
        svd_full_matrices=False,
        density=how.density if ties else None,
    )
