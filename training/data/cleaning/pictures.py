"""Checks of images: those that are tiny, and those that look alike."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from serve.images.decode import decode
from training.data.images import LIMITS, parted

SIDE = 32
"""Width and height to which an image is scaled before its frequencies are computed."""
LOW = 8
"""How many of the lowest frequencies count in each direction."""
BITS = LOW * LOW


def tiny_images(urls: Sequence[str], least: int) -> dict[int, str]:
    """Find images whose shorter side has fewer than `least` pixels. Returns reasons by index."""
    reasons = {}
    for index, url in enumerate(urls):
        width, height = _decoded(url).size
        if min(width, height) < least:
            reasons[index] = f"{width} x {height} pixels, and the shorter side needs {least}"
    return reasons


def perceptual_hash(url: str) -> int:
    """Return the 64 bits of an image that stay when it is scaled, stored anew or slightly changed (pHash, Zauner 2010):
    which of the lowest frequencies of the grey image are above their median."""
    grey = _decoded(url).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, dtype=np.float64), norm="ortho")[:LOW, :LOW].flatten()
    # The first one is the brightness, which says nothing of the shape.
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def _decoded(cell: str) -> Image.Image:
    """Return the image of an input, which may have a text beside it."""
    url, _ = parted(cell)
    return decode(url or cell, LIMITS)


class SimilarImages:
    """An index of images that finds those of which at least the share `similarity` of the hash's bits is equal."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._keys: list[int] = []
        self._hashes: NDArray[np.uint64] = np.empty(64, dtype=np.uint64)

    def add(self, key: int, url: str) -> None:
        """Add an image. Keys rise."""
        if len(self._keys) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[len(self._keys)] = perceptual_hash(url)
        self._keys.append(key)

    def find(self, url: str) -> list[tuple[int, float]]:
        """Return the keys and similarities of similar images, in the order of keys."""
        known = self._hashes[: len(self._keys)]
        different = np.bitwise_count(known ^ np.uint64(perceptual_hash(url)))
        shares = 1 - different / BITS
        return [
            (self._keys[place], float(shares[place]))
            for place in np.flatnonzero(shares >= self._similarity).tolist()
        ]
