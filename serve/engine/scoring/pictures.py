"""Images of a request, made ready for vLLM one at a time, so that many large ones take no more memory than one."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.model_loader import get_model_cls
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.v1.engine.async_llm import AsyncLLM

from serve.images.decode import decode
from serve.images.limits import ImageError, ImageLimits
from serve.labels import LabelError

TOKENS = 1
"""What an image counts as in the usage: it takes one place in the engine's batch."""


class Pictures:
    """Turns images into prompts of one engine."""

    def __init__(self, llm: AsyncLLM, limits: ImageLimits) -> None:
        self._llm = llm
        self._limits = limits
        self._one = asyncio.Semaphore(1)

    def of_url(
        self, url: str, name: str, readers: int, before: Sequence[int] | None = None
    ) -> "Picture":
        """Returns the image in a data URL. `name` stands for it in errors. `readers`: how often it is read. `before`:
        under a base that writes, the tokens up to the image and with what stands for it (see `placeholder`)."""

        def load() -> Image.Image:
            try:
                return decode(url, self._limits)
            except ImageError as error:
                raise LabelError(f"{name}: {error}") from error

        return Picture(self, load, readers, before)

    def of_probe(self, before: Sequence[int] | None = None) -> "Picture":
        """Returns a fixed image, read once."""
        return Picture(self, _probe_image, 1, before)

    async def rendered(self, load: Callable[[], Image.Image], before: Sequence[int] | None) -> Any:
        """Returns vLLM's prompt of an image: its pixels, scaled and normalised as the base's processor does it, and the
        tokens before it and its own. Raises LabelError if vLLM cannot read it."""
        text = {"prompt": ""} if before is None else {"prompt_token_ids": list(before)}
        async with self._one:
            image = await asyncio.to_thread(load)
            prompt = {**text, "multi_modal_data": {"image": image}}
            renderer = self._llm.renderer
            try:
                (rendered,) = await renderer.render_cmpl_async(
                    [parse_model_prompt(self._llm.model_config, prompt)],
                    renderer.default_cmpl_tok_params,
                    skip_mm_cache=True,
                )
            except (VLLMValidationError, ValueError) as error:  # the operator may allow no images
                raise LabelError(str(error)) from error
            return rendered


class Picture:
    """One image of a request. It is decoded when it is first read, and forgotten when it has been read by all."""

    def __init__(
        self,
        pictures: Pictures,
        load: Callable[[], Image.Image],
        readers: int,
        before: Sequence[int] | None,
    ) -> None:
        self._pictures = pictures
        self._load = load
        self._left = readers
        self._before = before
        self._rendered: Any = None
        self._lock = asyncio.Lock()
        self.tokens = 0
        """How many tokens more than `before` the prompt up to the image has, once it has been read."""

    async def prompt(self) -> Any:
        """Returns vLLM's prompt. Raises LabelError if the image cannot be read."""
        async with self._lock:
            if self._rendered is None:
                self._rendered = await self._pictures.rendered(self._load, self._before)
                self.tokens = len(self._rendered["prompt_token_ids"]) - len(self._before or ())
            rendered = self._rendered
            self._left -= 1
            if not self._left:
                self._rendered = None
            return rendered

    async def behind(self, tokens: Sequence[int]) -> tuple[list[int], Any]:
        """Returns the tokens of a whole prompt that begins with those before the image, with the image's own, and
        vLLM's prompt of the image. Raises LabelError if the image cannot be read."""
        rendered = await self.prompt()
        return [*rendered["prompt_token_ids"], *tokens[len(self._before or ()) :]], rendered


def placeholder(llm: AsyncLLM) -> str | None:
    """Returns the text that stands for an image in the prompts of a base that writes; None if it reads no images."""
    if not llm.model_config.is_multimodal_model:
        return None
    try:
        text: str | None = get_model_cls(llm.model_config).get_placeholder_str("image", 1)
    except ValueError:  # it reads something else, such as sounds
        return None
    return text or None


def _probe_image() -> Image.Image:
    """Returns an image with colours and edges everywhere, and no two equal parts."""
    rows, columns = np.mgrid[:48, :48]
    values = np.stack([rows * 5, columns * 5, (rows * columns * 7) % 256], axis=-1)
    return Image.fromarray(values.astype(np.uint8))
