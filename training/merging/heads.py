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
from serve.bundle import BundleError
from serve.tensors import TensorFile

_LINEAR = {"weight", "bias"}


def write_merged_head(folders: Sequence[Path], weights: Sequence[float], target: Path) -> None:
    """Write the merge of the heads in `folders` into `target`. Raises BundleError for heads that read the vector in
    different ways or are not linear."""
    for folder in folders:
        if (folder / HEAD).is_file() and set(TensorFile(folder / HEAD).tensors) != _LINEAR:
            raise BundleError(
                "A head with a hidden layer is not linear, so that no sum of heads is their mean; such members cannot "
                "be merged. Distil them instead."
            )
    metadata = [_metadata(folder) for folder in folders]
    if any(each != metadata[0] for each in metadata):
        raise BundleError(
            "The members' heads read the base's vectors in different ways (`normalize`, pairs or pooling), so that no "
            "single head stands for them; merge members that were trained alike."
        )
    heads = [Head.read(folder) for folder in folders]
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


def _metadata(folder: Path) -> dict[str, str]:
    """Return what a head's file says of its inputs, with the defaults that it leaves out."""
    said = TensorFile(folder / HEAD).metadata if (folder / HEAD).is_file() else {}
    given = {name: value for name, value in said.items() if name != "format"}
    return {"normalize": "false", **given}
