"""How large an image may be."""

from dataclasses import dataclass

from serve.errors import UserError

MEGA = 1_000_000
DEFAULT_MB = 8.0
DEFAULT_MEGAPIXELS = 25.0
MOST_MEGAPIXELS = 89.0
"""Above this, Pillow itself takes an image for an attack."""
MOST_TOGETHER = 4
"""How many times the pixels of the largest image all images of a chat may have together: they are decoded together."""
MOST_TIMES_AS_LONG = 32
"""How many times as long as it is wide an image may be. Models scale the short side to a fixed size, and the long side
with it: a few bytes of one long row of pixels would become gigabytes."""

MOST_SCANS = 100
"""How many scans a JPEG may have. Each is decoded over all pixels, even one of 42 bytes."""
MOST_PARTS = 256
"""How many parts (chunks or segments) a PNG or JPEG may have beside its pixels."""


class ImageError(UserError, ValueError):
    """An image in a request cannot be read. The message is one sentence for the client."""


@dataclass(frozen=True)
class ImageLimits:
    """What one image may have at most."""

    size: int = int(DEFAULT_MB * MEGA)
    """Bytes of the file."""
    pixels: int = int(DEFAULT_MEGAPIXELS * MEGA)
    """Width times height."""

    @classmethod
    def of(cls, mb: float, megapixels: float) -> "ImageLimits":
        """Returns the limits from the settings' units."""
        return cls(int(mb * MEGA), int(megapixels * MEGA))

    def check_size(self, size: int) -> None:
        """Raises ImageError for a file that is too large."""
        if size > self.size:
            raise ImageError(
                f"The image has {size:,} bytes, and at most {self.size:,} are taken: send a smaller one."
            )

    def check_together(self, pixels: int) -> None:
        """Raises ImageError if the images of one chat have too many pixels together."""
        most = MOST_TOGETHER * self.pixels
        if pixels > most:
            raise ImageError(
                f"The images have {pixels:,} pixels together, and at most {most:,} are taken: send fewer, or smaller."
            )

    def check_shape(self, width: int, height: int) -> None:
        """Raises ImageError for an image with too many pixels, or one that is too long for its width."""
        if width * height > self.pixels:
            raise ImageError(
                f"The image has {width:,} x {height:,} pixels, and at most {self.pixels:,} are taken: send a smaller "
                "one."
            )
        short, long = sorted((width, height))
        if long > MOST_TIMES_AS_LONG * short:
            raise ImageError(
                f"The image has {width:,} x {height:,} pixels, and one side may be at most {MOST_TIMES_AS_LONG} times "
                "as long as the other: cut it."
            )
