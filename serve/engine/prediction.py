"""From label scores to the answer of `/v1/predict`."""

import numpy as np
from numpy.typing import NDArray

from serve import metrics
from serve.engine.interface import PredictCall, Prediction
from serve.engine.loaded import Loaded
from serve.fusion.fused import Answers, FusedValues, agreeing
from serve.fusion.labels.tasks import outputs
from serve.manifest import Ensemble, Member


def prediction(
    loaded: Loaded,
    members: tuple[Member, ...],
    call: PredictCall,
    scores: NDArray[np.float64],
    prompt_tokens: int,
    member_tokens: int,
) -> Prediction:
    """The fused answer of scores [M, N, C]. Raises FusionError for what the request asks, and OutputError for what the
    members say."""
    ensemble, fusion = loaded.ensemble, loaded.fusion
    assert fusion is not None
    said = outputs(ensemble.task, scores)
    alone = tuple(fusion.alone(own, member.name) for own, member in zip(said, members, strict=True))
    if call.member is not None:
        answers = alone[0]
    else:
        with metrics.fusing(ensemble.name, call.method or ensemble.fusion.method):
            answers = fusion(said, method=call.method, weights=call.weights)
        _count(ensemble, members, alone, answers)
    return Prediction(
        version=call.version,
        labels=tuple(ensemble.labels or ()),
        answers=answers,
        members=members,
        member_answers=alone if call.return_members else None,
        prompt_tokens=prompt_tokens,
        member_tokens=member_tokens,
        absent=loaded.absent,
    )


def _count(
    ensemble: Ensemble, members: tuple[Member, ...], alone: tuple[Answers, ...], answers: Answers
) -> None:
    """How the members of labels stand to the fused answer; values have neither agreement nor nats."""
    for member, own in zip(members, alone, strict=True):
        agrees = agreeing(own, answers)
        if agrees is not None:
            yes = int(agrees.sum())
            metrics.member_agreed(ensemble.name, member.name, yes, len(agrees) - yes)
    if not isinstance(answers, FusedValues):
        metrics.disagreement_seen(ensemble.name, answers.disagreement.tolist())
