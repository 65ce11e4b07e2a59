"""Merges the heads of members: the weighted sum of their weights and biases.

A head is linear in the pooled vector v: score_i(v) = W_i v + b_i. So the merged head's scores of any vector are exactly
the weighted mean of the members' scores of that vector: sum w_i (W_i v + b_i) = (sum w_i W_i) v + sum w_i b_i. They are
not the mean of what the members answer, because each member computes a vector of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from serve.adapter import HEAD, Head
from serve.base.folder import BaseShapes, pooling_of
from serve.bundle import BundleError


def write_merged_head(
    folders: Sequence[Path], weights: Sequence[float], target: Path, base: BaseShapes | None
) -> None:
    """Write the merge of the heads in `folders` over `base` into `target`. Raises BundleError for heads that read the
    vector in different ways or are not linear."""
    heads = [Head.read(folder, base) for folder in folders]
    if any(head.hidden is not None for head in heads):
        raise BundleError(
            "A head with a hidden layer is not linear, so that no sum of heads is their mean; such members cannot be "
            "merged. Distil them instead."
        )
    metadata = [_metadata(head, base) for head in heads]
    if any(each != metadata[0] for each in metadata):
        raise BundleError(
            "The members' heads read the base's vectors in different ways (`normalize`, pairs or pooling), so that no "
            "single head stands for them; merge members that were trained alike."
        )
    shares = np.asarray(weights, dtype=np.float64)
    summed = {
        "weight": np.tensordot(shares, np.stack([head.weight for head in heads]), axes=1),
        "bias": np.tensordot(shares, np.stack([head.bias for head in heads]), axes=1),
    }
    save_file(
        {name: values.astype(np.float32) for name, values in summed.items()},
        target / HEAD,
        metadata=metadata[0],
    )


def _metadata(head: Head, base: BaseShapes | None) -> dict[str, str]:
    """Return what a head's file would say of its inputs."""
    usual = None if base is None else pooling_of(base.config)
    return {
        "normalize": str(head.normalize).lower(),
        **({"pair": "towers"} if head.towers else {}),
        **({} if head.pooling in (None, usual) else {"pooling": head.pooling}),
    }
