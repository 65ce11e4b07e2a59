"""Finds where an image ends in its bytes, and counts its parts on the way.

Decoders ignore what stands behind an image. A file that is an image and something else at the same time has its other
half there. And they take their time over each part, however small it is."""

import re
from collections.abc import Callable, Mapping

from serve.images.data_url import Format
from serve.images.limits import MOST_PARTS, MOST_SCANS, ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""JPEG's markers without a segment: TEM, and those between parts of a scan."""
_BEHIND_PIXELS = re.compile(rb"\xff[^\x00\x01\xd0-\xd7]")
"""The next marker behind the pixels of a scan, in which 0xFF is followed by 0 or by a marker without a segment."""


def end_of(kind: Format, data: bytes) -> int | None:
    """Returns how many bytes belong to the image; None if it is cut off before its end, or is of another format. Raises
    ImageError for an image of too many parts."""
    end = _ENDS[kind](data)
    return end if end is not None and end <= len(data) else None


def _end_of_png(data: bytes) -> int | None:
    if not data.startswith(_PNG):
        return None
    at, others = len(_PNG), 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        at += 12 + size  # size, name and checksum stand around the content
        if name == b"IEND":
            return at
        # Pixels may be in any number of chunks: together, they are decoded once.
        if name != b"IDAT":
            others += 1
            _check_parts(others)
    return None


def _end_of_jpeg(data: bytes) -> int | None:
    if not data.startswith(_JPEG):
        return None
    at, scans, others = len(_JPEG), 0, 0
    while at + 4 <= len(data) or data[at : at + 2] == bytes((0xFF, _END_OF_IMAGE)):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == _END_OF_IMAGE:
            return at + 2
        if marker == _START_OF_SCAN:
            scans += 1
            _check_scans(scans)
            at = _behind_scan(data, at + 2 + int.from_bytes(data[at + 2 : at + 4]))
            continue
        others += 1
        _check_parts(others)
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _behind_scan(data: bytes, at: int) -> int:
    """Returns where the next marker stands behind the pixels of a scan that begin at `at`."""
    found = _BEHIND_PIXELS.search(data, at)
    return found.start() if found else len(data)


def _check_scans(scans: int) -> None:
    """A progressive JPEG has about ten. A scan of a few bytes is decoded over all pixels."""
    if scans > MOST_SCANS:
        raise ImageError(
            f"The image has more than the {MOST_SCANS} scans that are taken of a JPEG: save it again."
        )


def _check_parts(others: int) -> None:
    """Texts, colour profiles and the like. Each is unpacked by itself."""
    if others > MOST_PARTS:
        raise ImageError(
            f"The image has more than the {MOST_PARTS} parts that are taken beside its pixels, such as texts: save it "
            "again, without them."
        )


def _end_of_webp(data: bytes) -> int | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2


_ENDS: Mapping[Format, Callable[[bytes], int | None]] = {
    "PNG": _end_of_png,
    "JPEG": _end_of_jpeg,
    "WEBP": _end_of_webp,
}
