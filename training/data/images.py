"""Reads cells that hold an image, and turns each into the data URL that a request would send."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.images.data_url import data_url, image_file
from serve.images.decode import decode
from serve.images.limits import ImageError, ImageLimits

LIMITS = ImageLimits()
"""What an image may have at most: as much as a server takes by default."""
SCHEME = "data:image/"
"""How a cell that holds an image begins, once it is read."""
CORNER = 16
"""Pixels at each side of the corner that marks an image: as many as JPEG stores as one colour."""


def is_image(cell: str) -> bool:
    """Whether an input is an image. Every other one is a text."""
    return cell.startswith(SCHEME)


def parted(cell: str) -> tuple[str | None, str]:
    """Return the image of an input as its data URL, and its text; None if the input is a text alone. An input of both
    is the image, a line feed and the text."""
    if not is_image(cell):
        return None, cell
    url, _, text = cell.partition("\n")
    return url, text


def image_url(cell: Any, folder: Path | None) -> str:
    """Return the data URL of the image in a cell; an empty text if the cell is missing.

    A cell is a data URL, a path relative to `folder`, bytes, or an image as `datasets` stores it. The URL has no line
    breaks, whatever the cell's own had: behind the first one an input has its text. Raises ImageError if the cell holds
    no image that a server would take."""
    if cell is None or cell == "":
        return ""
    if not isinstance(cell, str) or cell.strip()[:5].lower() != "data:":
        found = data_url(_bytes(cell, folder))
        decode(found, LIMITS)
        return found
    decode(cell, LIMITS)
    return data_url(image_file(cell, LIMITS).data)


def marked(url: str, number: int) -> str:
    """Return an image like that in a data URL, of the same format, whose upper left corner has one of 4,096 colours by
    `number`. It is made smaller, by halves, until a server takes it."""
    kind = image_file(url, LIMITS).format
    image = decode(url, LIMITS)
    levels = [number >> shift & 15 for shift in (0, 4, 8)]
    red, green, blue = (17 * level for level in levels)  # as far apart as JPEG leaves them
    image.paste((red, green, blue), (0, 0, CORNER, CORNER))
    while True:
        file = io.BytesIO()
        image.save(file, kind)
        if file.tell() <= LIMITS.size:
            return data_url(file.getvalue())
        image = image.reduce(2)


def _bytes(cell: Any, folder: Path | None) -> bytes:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, Mapping):
        held = cell.get("bytes")
        return held if isinstance(held, bytes) else _bytes(cell.get("path") or "", folder)
    return _read(str(cell), folder)


def _read(path: str, folder: Path | None) -> bytes:
    if folder is None:
        raise ImageError(
            f"the image {path[:100]!r} is a path, and only those in a file of this machine are followed"
        )
    file = folder / path
    try:
        LIMITS.check_size(file.stat().st_size)
        return file.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"the image {path[:100]!r} cannot be opened: {reason}") from None
