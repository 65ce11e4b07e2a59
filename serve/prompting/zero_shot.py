"""Classifies without heads: labels are texts, and an image belongs to the label whose text has the closest vector
(Radford et al. 2021)."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serve.adapter.head.scoring import Head
from serve.base.folder import BaseError, BaseShapes
from serve.manifest import Ensemble

SCALE = "logit_scale"
"""The weight of CLIP and SigLIP that holds the logarithm of the factor of their cosines."""


def label_prompts(
    prompts: Sequence[str], labels: Sequence[str], verbalizers: Mapping[str, str]
) -> list[str]:
    """Returns the texts of all labels [C x P], prompt by prompt of each label. `{label}` stands for the label's
    verbalizer, or else for the label itself."""
    return [
        prompt.replace("{label}", verbalizers.get(label, label))
        for label in labels
        for prompt in prompts
    ]


def ensemble_prompts(ensemble: Ensemble) -> list[str]:
    """Returns the texts of an ensemble's labels, as `label_prompts` does."""
    return label_prompts(ensemble.prompts, ensemble.labels or [], ensemble.verbalizers)


def prompt_head(vectors: NDArray[np.float32], prompts: int, scale: float) -> Head:
    """Returns the head that the vectors of the labels' texts [C x P, width] stand for, `prompts` (P) of each label.

    A label's vector is the normalised mean of its texts' normalised vectors. The head's scores are the cosines with it,
    times `scale`; SigLIP's bias is the same for all labels, so it changes no probability."""
    texts = _unit(vectors.astype(np.float64)).reshape(-1, prompts, vectors.shape[-1])
    weight = (scale * _unit(texts.mean(axis=1))).astype(np.float32)
    return Head(weight, np.zeros(len(weight), np.float32), normalize=True, towers=False)


def scale_of(base: BaseShapes | None) -> float:
    """Returns the factor of a base's cosines. Raises BaseError if the base is not on this machine or has none."""
    if base is None or SCALE not in base.files:
        raise BaseError(
            f"'prompts' needs the weight {SCALE!r} of a CLIP or SigLIP, and the base's files have none."
        )
    return float(np.exp(base.files[SCALE].floats(SCALE).astype(np.float64)).item())


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    unit: NDArray[np.float64] = vectors / lengths
    return unit
