"""The images of a chat, before vLLM sees them and while it decodes them. No engine starts."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve.images.limits import ImageLimits
from tests.serve.images.hostile import hostile, picture, url_of

pytestmark = pytest.mark.engine

DAMAGED_LATER = {"pixels missing"}
"""What only the decoder sees."""


class Renderer:
    """Renders nothing, and counts how many chats it renders at once."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def render_chat_async(self, conversations: Any, *args: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        return conversations, args


def made(**limits: int) -> tuple[Any, Renderer]:
    from serve.engine.limits.chat_images import ChatImages

    renderer = Renderer()
    llm: Any = SimpleNamespace(renderer=renderer)
    return ChatImages(llm, ImageLimits(**limits)), renderer


def chat(*urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]


@pytest.mark.parametrize("name", [n for n, (url, _) in hostile().items() if url.startswith("data")])
async def test_a_hostile_image_is_refused_by_its_place(name: str) -> None:
    url, words = hostile()[name]
    images, _ = made()
    refusal = await images.refusal(chat(url_of(picture()), url), "messages")
    if name in DAMAGED_LATER:
        assert refusal is None
        return
    assert refusal is not None
    assert (refusal.status, refusal.param) == (400, "messages")
    assert refusal.message.startswith("messages[0].content[2]: ")
    with pytest.raises(AssertionError, match=words):
        assert not refusal.message, refusal.message


async def test_images_of_a_chat_have_a_limit_together() -> None:
    images, _ = made(pixels=24 * 16)
    url = url_of(picture())
    assert await images.refusal(chat(*[url] * 4), "input") is None
    refusal = await images.refusal(chat(*[url] * 5), "input")
    assert refusal is not None
    assert "1,920 pixels together, and at most 1,536" in refusal.message


async def test_vllm_decodes_images_by_the_same_rules() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    made(pixels=24 * 16)
    connector = MEDIA_CONNECTOR_REGISTRY.load("http")
    transparent = picture(mode="RGBA")
    found = await connector.fetch_image_async(url_of(transparent))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(transparent.convert("RGB")))
    for name in ("pixels missing", "an SVG as a PNG", "an animated WebP"):
        with pytest.raises(VLLMValidationError, match="The image"):
            await connector.fetch_image_async(hostile()[name][0])
    with pytest.raises(VLLMValidationError, match="25 x 16 pixels, and at most 384"):
        await connector.fetch_image_async(url_of(picture(25, 16)))


async def test_chats_with_images_are_rendered_one_after_the_other() -> None:
    """Others do not wait for them."""
    _, renderer = made()
    render = renderer.render_chat_async
    seen = chat(url_of(picture()))
    for conversation, most in ((seen, 1), ([{"role": "user", "content": "look"}], 5)):
        renderer.most = 0
        found = await asyncio.gather(*(render([conversation], "x") for _ in range(5)))
        assert renderer.most == most
        assert found == [([conversation], ("x",))] * 5
