"""Images as inputs: a file becomes the data URL that the server reads."""

import base64
import os
from pathlib import Path
from typing import Any

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


def image_part(file: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """Return an image as a part of a chat message's content, in OpenAI's form. Takes and raises what `image` does."""
    return {"type": "image_url", "image_url": {"url": image(file)["image"]}}
