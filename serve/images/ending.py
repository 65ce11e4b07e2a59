"""Finds where an image ends in its bytes.

Decoders ignore what stands behind an image. A file that is an image and something else at the same time has its other
half there."""

from collections.abc import Callable, Mapping

from serve.images.data_url import Format

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""JPEG's markers without a segment: TEM, and those between parts of a scan."""


def end_of(kind: Format, data: bytes) -> int | None:
    """Returns how many bytes belong to the image; None if it is cut off before its end, or is of another format."""
    end = _ENDS[kind](data)
    return end if end is not None and end <= len(data) else None


def _end_of_png(data: bytes) -> int | None:
    if not data.startswith(_PNG):
        return None
    at = len(_PNG)
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        at += 12 + size  # size, name and checksum stand around the content
        if name == b"IEND":
            return at
    return None


def _end_of_jpeg(data: bytes) -> int | None:
    if not data.startswith(_JPEG):
        return None
    at = len(_JPEG)
    while at + 4 <= len(data) or data[at : at + 2] == bytes((0xFF, _END_OF_IMAGE)):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker == _END_OF_IMAGE:
            return at + 2
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
            if marker == _START_OF_SCAN:
                at = _behind_scan(data, at)
    return None


def _behind_scan(data: bytes, at: int) -> int:
    """Returns where the next marker stands behind the pixels of a scan, in which 0xFF is followed by 0."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] != 0 and data[at + 1] not in _ALONE:
            return at
        at += 2


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
