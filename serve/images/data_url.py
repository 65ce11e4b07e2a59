"""Takes the bytes of an image out of a data URL (RFC 2397), and makes such URLs."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serve.images.limits import ImageError, ImageLimits

Format: TypeAlias = Literal["PNG", "JPEG", "WEBP"]
"""A format that is decoded, by Pillow's name."""

_FORMATS: Mapping[str, Format] = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
}
_BEGINNINGS: Mapping[str, re.Pattern[bytes]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""How the bytes of an image of each type begin."""
_HEAD = 100
"""Characters in which a data URL says its type."""
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")
_EXPECTED = "send a PNG, JPEG or WebP as a data URL, such as 'data:image/png;base64,...'"


@dataclass(frozen=True)
class ImageFile:
    """The bytes of an image, and the format that they are said to have."""

    format: Format
    data: bytes


def image_file(url: str, limits: ImageLimits) -> ImageFile:
    """Returns what is in a data URL. Raises ImageError for any other URL or path, for a type that is not served, for
    what is no base64, and for too many bytes."""
    head, comma, _ = url[:_HEAD].partition(",")
    scheme, colon, media = head.partition(":")
    if scheme.strip().lower() != "data" or not colon:
        raise ImageError(
            f"An image is taken as a data URL alone, and nothing is fetched or opened; this begins with {url[:40]!r}: "
            f"{_EXPECTED}."
        )
    kind, *parameters = [part.strip().lower() for part in media.split(";")]
    if kind not in _FORMATS:
        raise ImageError(
            f"The image is of the type {kind[:40]!r}, which is not served: {_EXPECTED}."
        )
    if not comma or parameters[-1:] != ["base64"]:
        raise ImageError(f"The data URL of the image is not in base64: {_EXPECTED}.")
    start = len(head) + 1
    limits.check_size((len(url) - start) * 3 // 4 - 2)
    try:
        data = base64.b64decode(_WHITE_SPACE.sub("", url[start:]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("The content of the image's data URL is no valid base64.") from error
    limits.check_size(len(data))
    if not data:
        raise ImageError(f"The data URL of the image is empty: {_EXPECTED}.")
    return ImageFile(_FORMATS[kind], data)


def data_url(data: bytes) -> str:
    """Returns the data URL of the bytes of an image. Raises ImageError for bytes that begin as no PNG, JPEG or WebP
    does."""
    for kind, begins in _BEGINNINGS.items():
        if begins.match(data):
            return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    raise ImageError("The file is no PNG, JPEG or WebP: save the image as one of these.")
