"""The images of a chat: checked before vLLM sees them, decoded by the rules of all images, one chat after the other.

Changes vLLM 0.32's media connector and one method of its renderer, behind the version guard in
`vllm_hooks/arguments.py`. What an operator lets vLLM fetch (`allowed_media_domains`) is decoded by vLLM's own rules."""

import asyncio
from collections.abc import Sequence
from typing import Any

from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.limits.media import media_urls
from serve.errors import Refusal
from serve.images.decode import decode, pixels_of
from serve.images.limits import ImageError, ImageLimits


class ChatImages:
    """Checks images, and has vLLM decode them."""

    def __init__(self, llm: AsyncLLM, limits: ImageLimits) -> None:
        self._limits = limits
        self._one = asyncio.Semaphore(1)
        MEDIA_CONNECTOR_REGISTRY.register("http")(_connector(limits))
        self._render_one_by_one(llm.renderer)

    async def refusal(self, messages: Any, param: str) -> Refusal | None:
        """Returns why an image of the messages is refused, from its header alone; None if none is. `param`: the field
        of the request that has them."""
        pixels = 0
        for place, url in _images(messages):
            try:
                async with self._one:
                    pixels += await asyncio.to_thread(pixels_of, url, self._limits)
                self._limits.check_together(pixels)
            except ImageError as error:
                return Refusal(400, f"{param}{place}: {error}", param=param)
        return None

    def _render_one_by_one(self, renderer: Any) -> None:
        """Makes chats with images wait for each other while they are decoded and scaled, so that many take no more
        memory than one."""
        render = renderer.render_chat_async

        async def render_chat_async(conversations: Sequence[Any], *args: Any, **kw: Any) -> Any:
            if not any(_images(each) for each in conversations):
                return await render(conversations, *args, **kw)
            async with self._one:
                return await render(conversations, *args, **kw)

        renderer.render_chat_async = render_chat_async


def _images(messages: Any) -> list[tuple[str, str]]:
    """Returns the place and the URL of each image in messages that is a data URL."""
    return [
        (place, url)
        for place, name, url in media_urls(messages)
        if name == "image_url" and url[:5].lower() == "data:"
    ]


def _connector(limits: ImageLimits) -> type[MediaConnector]:
    """Returns vLLM's connector with another way of reading images in data URLs."""

    class PictureConnector(MediaConnector):
        def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
            if image_url[:5].lower() != "data:":
                fetched: Image.Image = super().fetch_image(image_url, image_mode=image_mode)
                return fetched
            try:
                return decode(image_url, limits)
            except ImageError as error:
                raise VLLMValidationError(str(error), parameter="messages") from error

        async def fetch_image_async(
            self, image_url: str, *, image_mode: str | None = "RGB"
        ) -> Image.Image:
            if image_url[:5].lower() != "data:":
                fetched: Image.Image = await super().fetch_image_async(
                    image_url, image_mode=image_mode
                )
                return fetched
            return await asyncio.to_thread(self.fetch_image, image_url)

    return PictureConnector
