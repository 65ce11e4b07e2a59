"""Makes the heads of an ensemble that classifies by prompts: each member's own vectors of the labels' texts."""

import asyncio
from collections.abc import Sequence

from serve.adapter import AdapterError, Head
from serve.base.folder import BaseError
from serve.engine.adapters.member_adapters import MemberAdapters
from serve.engine.adapters.pool import AdapterPool
from serve.engine.interface import PrepareError
from serve.engine.limits.fair_queue import FairQueue
from serve.engine.scoring.heads import EncoderPooler, Row
from serve.labels import LabelError
from serve.manifest import Ensemble
from serve.prompting.zero_shot import ensemble_prompts, prompt_head, scale_of

TEXTS_AT_ONCE = 16
"""How many of the labels' texts are in vLLM's queue at once, so that requests are not kept waiting."""


async def prompted_heads(
    encoder: EncoderPooler,
    ensemble: Ensemble,
    members: Sequence[MemberAdapters],
    pool: AdapterPool,
) -> dict[str, Head]:
    """Returns each member's head by its name. `members`: what each runs with; their LoRAs are in slots. Raises
    PrepareError if the base reads texts alone, or if a label's text is too long."""
    if encoder.pictures is None:
        raise PrepareError(
            "'prompts' needs a CLIP or a SigLIP as the base, and this one reads texts alone."
        )
    try:
        scale = scale_of(await asyncio.to_thread(pool.base_shapes))
        rows: list[Row] = [*await asyncio.to_thread(encoder.tokens, ensemble_prompts(ensemble))]
    except (AdapterError, BaseError, LabelError) as error:
        raise PrepareError(f"The prompts cannot be used: {error}") from error
    adapters = [each.lora for each in members]
    vectors = await encoder.pool(rows, adapters, FairQueue(TEXTS_AT_ONCE).for_call())
    return {
        member.name: prompt_head(own, len(ensemble.prompts), scale)
        for member, own in zip(ensemble.members, vectors, strict=True)
    }
