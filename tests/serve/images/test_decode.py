"""What becomes of images from strangers. The reference for good ones is transformers."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from serve.images.decode import decode
from serve.images.limits import ImageError, ImageLimits
from tests.serve.images.hostile import (
    TYPES,
    chunk,
    data_url,
    hostile,
    picture,
    saved,
    scans,
    url_of,
)

HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_image_is_refused_with_a_sentence(name: str) -> None:
    url, words = HOSTILE[name]
    with pytest.raises(ImageError, match=words) as refused:
        decode(url, ImageLimits())
    sentence = str(refused.value)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert len(sentence) < 300


def test_a_hostile_image_takes_no_memory() -> None:
    """In a process of its own: the most memory that it ever had, before and after all of them."""
    code = (
        "import resource, warnings\n"
        "from serve.images.decode import decode\n"
        "from serve.images.limits import ImageError, ImageLimits\n"
        "from tests.serve.images.hostile import hostile, picture, url_of\n"
        "warnings.simplefilter('ignore')\n"
        "every = hostile()\n"
        "decode(url_of(picture()), ImageLimits())\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = most()\n"
        "for url, _ in every.values():\n"
        "    try: decode(url, ImageLimits())\n"
        "    except ImageError: pass\n"
        "    else: raise SystemExit('taken')\n"
        "print(most() - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown_by = int(ran.stdout)
    assert grown_by < 80, f"{grown_by} MB"  # one file of 8 MB, several times as text and bytes


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA", "1"])
def test_an_image_is_decoded_as_transformers_decodes_it(kind: str, mode: str) -> None:
    image = picture(37, 21, mode=mode)
    try:
        url = url_of(image, kind)
    except OSError:
        pytest.skip(f"{kind} has no mode {mode}")
    found = decode(url, ImageLimits())
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(url)))


def test_a_photo_is_turned_as_the_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    url = data_url(saved(picture(40, 20), "JPEG", exif=exif), "jpeg")
    found = decode(url, ImageLimits())
    assert found.size == (20, 40)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(url)))


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}])
def test_the_end_of_a_jpeg_is_found_behind_all_its_scans(options: dict[str, object]) -> None:
    url = url_of(picture(200, 150), "JPEG", quality=95, **options)
    assert decode(url, ImageLimits()).size == (200, 150)


def test_a_jpeg_may_have_100_scans_and_a_png_any_number_of_chunks_of_pixels() -> None:
    usual = saved(picture(), "JPEG", progressive=True).count(b"\xff\xda")
    assert decode(data_url(scans(100 - usual), "jpeg"), ImageLimits()).size == picture().size
    with pytest.raises(ImageError, match="100 scans"):
        decode(data_url(scans(101 - usual), "jpeg"), ImageLimits())
    png = saved(picture())
    many = png[:-12] + 5000 * chunk(b"IDAT") + png[-12:]
    assert decode(data_url(many), ImageLimits()).size == picture().size


def test_of_colours_with_16_bits_the_upper_8_are_read() -> None:
    values = np.asarray(picture()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", *picture().size, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    found = decode(data_url(b"\x89PNG\r\n\x1a\n" + chunks), ImageLimits())
    np.testing.assert_array_equal(np.asarray(found), np.asarray(picture()))


def test_a_data_url_may_have_lines_capitals_and_parameters() -> None:
    data = url_of(picture()).partition(",")[2]
    lines = "\n".join(data[at : at + 76] for at in range(0, len(data), 76))
    for head in ("data:image/png;base64,", "DATA:Image/PNG;charset=utf-8;BASE64,"):
        np.testing.assert_array_equal(
            np.asarray(decode(head + lines, ImageLimits())), np.asarray(picture())
        )


def test_the_limits_are_those_of_the_settings() -> None:
    limits = ImageLimits.of(0.5, 0.01)
    assert (limits.size, limits.pixels) == (500_000, 10_000)
    assert decode(url_of(picture(100, 100)), limits).size == (100, 100)
    with pytest.raises(ImageError, match=r"101 x 100 pixels, and at most 10,000"):
        decode(url_of(picture(101, 100)), limits)
    with pytest.raises(ImageError, match=r"at most 500,000 are taken"):
        decode(data_url(bytes(500_001)), limits)
