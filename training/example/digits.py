"""scikit-learn's handwritten digits (Alpaydin and Kaynak 1998) as images: 1,797 pictures of 8 x 8 pixels."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from serve.images.data_url import data_url

NAMES: Sequence[str] = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
BRIGHTEST = 16
"""The value of a pixel that is fully inked."""


def rows(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """Return `count` rows with `image` (the data URL of a PNG) and `digit`. The digits are in one random order by the
    seed; the split called `train` begins at its start, and every other at its end."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    chosen = order[:count] if split == "train" else order[::-1][:count]
    return [
        {"image": _png(pixels[row].reshape(8, 8)), "digit": NAMES[digits[row]]} for row in chosen
    ]


def _png(pixels: np.ndarray) -> str:
    grey = np.round(pixels * (255 / BRIGHTEST)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return data_url(file.getvalue())
