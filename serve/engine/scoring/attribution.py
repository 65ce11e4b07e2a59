"""Counts which members decide answers, for a sample of them, after they were answered."""

import asyncio
import logging

import numpy as np

from serve.fusion.drift.attribution import left_out
from serve.fusion.errors import FusionError
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, joined
from serve.fusion.members import Floats
from serve.watching import drift

logger = logging.getLogger(__name__)

SAMPLE = 0.05
"""The share of the answers that are sampled. Each costs one more fusion for each member."""

_RANDOM = np.random.default_rng()


def attribute_later(fusion: Fusion, outputs: Floats, answers: Answers) -> None:
    """Draw a sample of a request's answers and count them in another thread. Nobody waits for it."""
    rows = np.flatnonzero(_RANDOM.random(outputs.shape[1]) < SAMPLE)
    if len(rows):
        sample = joined([answers], rows)
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, _attribute, fusion, outputs[:, rows], sample)


def _attribute(fusion: Fusion, outputs: Floats, answers: Answers) -> None:
    try:
        for each in left_out(fusion, outputs, answers):
            changed = int(each.changed.sum())
            drift.member_changed(fusion.ensemble.name, each.member, changed, outputs.shape[1])
    except FusionError:
        logger.exception("The answers of %s could not be attributed.", fusion.ensemble.id)
