"""Images as clients send them, good ones and those that somebody made to do harm."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SCRIPT = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
TYPES = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}


def picture(width: int = 24, height: int = 16, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def url_of(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    return data_url(saved(image, kind, **options), TYPES[kind])


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_grey() -> Image.Image:
    """All greys of 16 bits, of which Pillow makes white."""
    return Image.fromarray(np.arange(65_536, dtype=np.uint16).reshape(256, 256))


def scans(times: int, image: Image.Image | None = None) -> bytes:
    """A progressive JPEG whose last scan comes again and again. Each is decoded over all pixels."""
    whole = saved(image or picture(), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + times * last + whole[-2:]


def huge(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of a few bytes whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def huge_webp() -> bytes:
    """A WebP whose header promises 16,383 x 16,383 pixels, the most of this format."""
    size = 16_382
    canvas = bytes(4) + size.to_bytes(3, "little") * 2
    lossless = b"\x2f" + (size | size << 14).to_bytes(4, "little") + bytes(8)
    chunks = b"".join(
        name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
        for name, data in ((b"VP8X", canvas), (b"VP8L", lossless))
    )
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def animated(kind: str) -> bytes:
    frames = [picture(seed=seed) for seed in (1, 2)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def hostile() -> dict[str, tuple[str, str]]:
    """Name -> what is sent as an image, and words of the sentence that refuses it."""
    png, jpeg, webp = (saved(picture(), kind) for kind in TYPES)
    long_text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))
    return {
        "an http URL": ("http://169.254.169.254/latest/meta-data", "nothing is fetched"),
        "an https URL": ("https://example.com/cat.png", "nothing is fetched"),
        "a file URL": ("file:///etc/passwd", "nothing is fetched or opened"),
        "a path": ("/etc/passwd", "nothing is fetched or opened"),
        "bare base64": (base64.b64encode(png).decode(), "data URL alone"),
        "nothing": ("", "data URL alone"),
        "an empty data URL": ("data:image/png;base64,", "is empty"),
        "no base64": ("data:image/png,abc", "not in base64"),
        "broken base64": ("data:image/png;base64,@@@@", "no valid base64"),
        "a truncated PNG": (data_url(png[:-30]), "cut off"),
        "a truncated JPEG": (data_url(jpeg[:-30], "jpeg"), "cut off"),
        "a truncated WebP": (data_url(webp[:-30], "webp"), "damaged|cut off"),
        "a header alone": (data_url(png[:20]), "damaged"),
        "pixels missing": (data_url(huge(100, 100)), "damaged"),
        "100,000 x 100,000": (data_url(huge()), "more than the 25,000,000 pixels"),
        "10,000 x 10,000": (data_url(huge(10_000, 10_000)), "25,000,000 pixels"),
        "6,000 x 6,000": (data_url(huge(6000, 6000)), "6,000 x 6,000 pixels"),
        "the largest WebP": (data_url(huge_webp(), "webp"), "25,000,000 pixels"),
        "one row": (data_url(huge(1_000_000, 1)), "32 times as long"),
        "a compressed text": (data_url(png[:33] + long_text + png[33:]), "damaged"),
        "7,000 colour profiles": (data_url(png[:33] + 7000 * profile + png[33:]), "256 parts"),
        "texts behind the pixels": (
            data_url(png[:-12] + 300 * chunk(b"tEXt") + png[-12:]),
            "parts",
        ),
        "a million comments": (
            data_url(jpeg[:2] + 1_000_000 * b"\xff\xfe\0\2" + jpeg[2:], "jpeg"),
            "256 parts",
        ),
        "filling": (data_url(jpeg[:2] + 7_000_000 * b"\xff" + jpeg[2:], "jpeg"), "256 parts"),
        "100,000 scans": (data_url(scans(100_000), "jpeg"), "100 scans"),
        "an SVG": (data_url(SCRIPT, "svg+xml"), "'image/svg.xml', which is not served"),
        "an SVG as a PNG": (data_url(SCRIPT), "damaged, or no PNG"),
        "a GIF": (data_url(saved(picture(), "GIF"), "gif"), "'image/gif', which is not served"),
        "a GIF as a PNG": (data_url(saved(picture(), "GIF")), "no PNG"),
        "a JPEG as a PNG": (data_url(jpeg), "no PNG"),
        "a PNG as a JPEG": (data_url(png, "jpeg"), "no JPEG"),
        "a text": ("data:text/html;base64,PGI+", "'text/html', which is not served"),
        "a PNG and a ZIP": (data_url(png + b"PK\x03\x04" + bytes(90)), "94 bytes behind the end"),
        "a JPEG and a script": (data_url(jpeg + SCRIPT, "jpeg"), "behind the end"),
        "a WebP and a PDF": (data_url(webp + b"%PDF-1.7", "webp"), "8 bytes behind the end"),
        "an animated PNG": (data_url(animated("PNG")), "2 pictures"),
        "an animated WebP": (data_url(animated("WEBP"), "webp"), "2 pictures"),
        "grey of 16 bits": (data_url(saved(deep_grey())), "8 bits a channel"),
        "too many bytes": (data_url(png + bytes(8_000_000)), "at most 8,000,000"),
    }
