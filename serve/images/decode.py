"""Decodes images that strangers send."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps

from serve.images.data_url import ImageFile, image_file
from serve.images.ending import end_of
from serve.images.limits import ImageError, ImageLimits

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(url: str, limits: ImageLimits) -> Image.Image:
    """Returns the image in a data URL: in RGB, without transparency, turned as its EXIF data say. transformers'
    `load_image` does the same.

    Takes up to three bytes a pixel and a copy of the file; size, format and the number of parts are checked before any
    pixel is decoded. Raises ImageError for everything that is not one whole PNG, JPEG or WebP of one picture within the
    limits."""
    with _checked(url, limits) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return image.convert("RGB")


def pixels_of(url: str, limits: ImageLimits) -> int:
    """Returns how many pixels the image in a data URL has, from its header, without decoding one. Raises ImageError as
    `decode` does, but for damage among the pixels."""
    with _checked(url, limits) as image:
        width, height = image.size
        return int(width * height)


@contextmanager
def _checked(url: str, limits: ImageLimits) -> Iterator[Image.Image]:
    """Yields the opened image in a data URL, of which only the header is read. Raises ImageError for one that is not
    taken, and in place of what Pillow raises meanwhile."""
    file = image_file(url, limits)
    end = end_of(file.format, file.data)  # first: Pillow would read any number of parts
    try:
        with _opened(file) as image:
            limits.check_shape(*image.size)
            _check_alone(image)
            _check_depth(image)
            _check_end(file, end)
            yield image
    except ImageError:
        raise
    except _BOMBS as error:
        raise ImageError(
            f"The image has more than the {limits.pixels:,} pixels that are taken: send a smaller one."
        ) from error
    except Exception as error:  # from bytes of strangers, Pillow raises exceptions of many types
        raise ImageError(
            f"The image cannot be decoded: it is damaged, or no {file.format}."
        ) from error


def _opened(file: ImageFile) -> Image.Image:
    """Opens the file as the format that it is said to have, and as no other. Reads its header alone."""
    return Image.open(io.BytesIO(file.data), formats=[file.format])


def _check_alone(image: Image.Image) -> None:
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1:
        raise ImageError(
            f"The image has {pictures} pictures (it is animated, or a series): send one picture."
        )


def _check_depth(image: Image.Image) -> None:
    """Pillow clips grey of 16 bits at 255, which makes nearly all of it white. Of colours it keeps the upper 8 bits."""
    if image.mode.startswith(("I", "F")):
        raise ImageError(
            "The image is grey with 16 bits a pixel, and at most 8 are taken: save it with 8 bits a channel."
        )


def _check_end(file: ImageFile, end: int | None) -> None:
    if end is None:
        raise ImageError("The image is cut off before its end: send the whole file.")
    if end < len(file.data):
        raise ImageError(
            f"The file has {len(file.data) - end:,} bytes behind the end of the image, which may be another file: save "
            "the image again, alone."
        )
