"""Images as inputs: a file becomes the data URL that the server reads."""

import base64
import os
from pathlib import Path

_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
"""How a file of each type begins."""


def image(file: str | os.PathLike[str] | bytes) -> dict[str, str]:
    """Return the input of an image: `{"image": data URL}`.

    `file` is a path, or the bytes of a PNG, JPEG or WebP. Raises OSError if it cannot be read, and ValueError if it is
    none of these. The server checks the whole image.
    """
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    kind = next((name for begin, name in _TYPES.items() if data.startswith(begin)), None)
    if kind is None:
        what = "these bytes are" if isinstance(file, bytes) else f"{os.fspath(file)} is"
        raise ValueError(f"{what} no PNG, JPEG or WebP: save the image as one of these")
    return {"image": f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"}
