"""Images as inputs of the client."""

from pathlib import Path

import pytest

from choir_client import image, image_part
from serve.images.decode import decode
from serve.images.limits import ImageLimits
from tests.serve.images.hostile import picture, saved


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_path_and_bytes_become_what_the_server_reads(tmp_path: Path, kind: str) -> None:
    data = saved(picture(), kind)
    (tmp_path / "one").write_bytes(data)
    assert image(tmp_path / "one") == image(str(tmp_path / "one")) == image(data)
    assert image_part(data)["image_url"]["url"] == image(data)["image"]
    assert decode(image(data)["image"], ImageLimits()).size == picture().size


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="these bytes are no PNG, JPEG or WebP"):
        image(b"GIF89a")
