"""Scores labels after an ensemble's template, filled with texts, pairs of texts and images."""

from collections.abc import Sequence
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.adapters.invocations import heads_of
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.interface import PrepareError, Text
from serve.engine.limits.fair_queue import CallQueue
from serve.engine.scoring.heads import IMAGE_UNUSED, PAIR_UNUSED
from serve.engine.scoring.labels_as_text import CausalScorer, Image
from serve.engine.scoring.pictures import placeholder
from serve.engine.scoring.prediction import MemberScores
from serve.images.limits import ImageLimits
from serve.labels import IMAGE, LabelError, fill, filled, label_texts
from serve.manifest import Ensemble
from serve.prompting.reader import PromptReader

PAIR_MISSING = "The ensemble's template needs a text_pair with every input."


class TemplateScorer:
    """Turns inputs into prompts of one base, and has their labels scored."""

    def __init__(
        self, llm: AsyncLLM, tokenizer: Any, images: ImageLimits, reader: PromptReader
    ) -> None:
        self._scorer = CausalScorer(llm, tokenizer, images)
        self._placeholder = placeholder(llm)
        self._reader = reader

    def check_template(self, template: str) -> None:
        """Raises PrepareError for a template with an image that the base does not read."""
        if IMAGE in template and self._placeholder is None:
            raise PrepareError(
                f"The template {template!r} has {IMAGE}, and the base writes about no images."
            )

    async def score(
        self,
        ensemble: Ensemble,
        inputs: Sequence[Text],
        members: Sequence[MemberAdapters],
        queue: CallQueue,
    ) -> MemberScores:
        """Returns the members' scores of the ensemble's labels. Raises LabelError for an input that does not fill the
        template, and as `CausalScorer.score`."""
        given = [
            self._filled(ensemble.template, each, _name(number, inputs))
            for number, each in enumerate(inputs)
        ]
        scored = await self._scorer.score(
            [prompt for prompt, _ in given],
            label_texts(ensemble.labels or (), ensemble.verbalizers),
            members,
            queue,
            mean=ensemble.label_scoring == "mean",
            heads=heads_of(ensemble, inputs, members, self._reader, self._placeholder or ""),
            images=[image for _, image in given],
        )
        return MemberScores(
            scored.scores, scored.prompt_tokens, scored.member_tokens, scored.computed_tokens
        )

    def _filled(self, template: str, given: Text, name: str) -> tuple[str, Image | None]:
        """Returns the prompt of an input, and its image if it has one. `name`: of the image, in errors. Raises
        LabelError for an image or a text that there is no place for, and for a text that is no pair where pairs are
        read, or the other way round."""
        pair_needed = "{text_pair}" in template
        if (given.text_pair is not None) != pair_needed:
            raise LabelError(PAIR_MISSING if pair_needed else PAIR_UNUSED)
        if given.text and "{text}" not in template:
            raise LabelError(
                "The ensemble's template has no place for a text: give an image alone."
            )
        mark = self._placeholder
        if mark is not None and any(mark in text for text in (given.text, given.text_pair or "")):
            raise LabelError(f"A text has {mark!r} in it, which stands for an image.")
        if given.image is None:
            return fill(template, given.text, given.text_pair), None
        if mark is None:
            raise LabelError(IMAGE_UNUSED)
        head, rest = filled(template, given.text, given.text_pair, mark)
        return head + rest, Image(given.image, head, name)


def _name(number: int, inputs: Sequence[Text]) -> str:
    return f"input[{number}].image" if len(inputs) > 1 else "input.image"
