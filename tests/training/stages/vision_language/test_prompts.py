"""Prompts with images: the tokens of the base's own processor, and its pixels."""

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoProcessor

from serve.labels import LabelError
from tests.serve import seeing, towers
from tests.serve.images.hostile import url_of
from training.stages.vision_language.prompts import ImagePrompts

PICTURES = towers.pictures(3, seed=5)


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = cast(seeing.Family, request.param)
    return seeing.base(family, tmp_path_factory.mktemp(family) / "base", published=False)


def test_they_are_the_processors_own(base: Path) -> None:
    """Images of three sizes, which the Idefics3 cuts into different numbers of tiles."""
    processor, prompts = AutoProcessor.from_pretrained(base), ImagePrompts(str(base))
    for picture in [*PICTURES, PICTURES[0]]:
        url = url_of(picture)
        text = prompts.filled("a {text}: {image}\nyes", f"{url}\ncat")
        theirs = processor(text=["a cat: <image>\nyes"], images=[[picture]], return_tensors="pt")
        ours = processor.tokenizer([text], return_tensors="pt")
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        for name, tensor in prompts.pixels([url]).items():
            assert torch.equal(tensor, theirs[name])


def test_a_document_has_the_image_where_it_names_its_column(base: Path) -> None:
    prompts = ImagePrompts(str(base))
    url = url_of(PICTURES[0])
    row = {"photo": url, "what": "cat {x}"}
    text, shown = prompts.document("{photo} a {what}", row, "photo")
    assert (text, shown) == (f"{prompts.written(url)} a cat {{x}}", url)
    assert prompts.document("a {what}", row, "photo") == ("a cat {x}", None)
    with pytest.raises(LabelError, match="holds <image>"):
        prompts.document("{photo} a {what}", row | {"what": "<image>"}, "photo")
