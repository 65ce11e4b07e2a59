"""Makes the answer of `/v1/predict` from label scores."""

import numpy as np
from numpy.typing import NDArray

from serve import metrics
from serve.engine.interface import PredictCall, Prediction
from serve.engine.loaded import LoadedVersion
from serve.fusion.fused import Answers, FusedValues, agreeing
from serve.fusion.labels.tasks import outputs
from serve.manifest import Ensemble, Member


def prediction(
    loaded: LoadedVersion,
    members: tuple[Member, ...],
    call: PredictCall,
    scores: NDArray[np.float64],
    prompt_tokens: int,
    member_tokens: int,
) -> Prediction:
    """Returns the fused answer from the scores [M, N, C] of M members, N inputs and C labels.

    Raises FusionError if the request's method or weights cannot be used, and OutputError if the members' scores
    cannot be fused."""
    ensemble, fusion = loaded.ensemble, loaded.fusion
    assert fusion is not None
    by_member = outputs(ensemble.task, scores)
    alone = tuple(
        fusion.alone(own, member.name) for own, member in zip(by_member, members, strict=True)
    )
    if call.member is not None:
        answers = alone[0]
    else:
        with metrics.fusing(ensemble.name, call.method or ensemble.fusion.method):
            answers = fusion(by_member, method=call.method, weights=call.weights)
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
    """Counts how often each member agrees with the fused answer, and the members' disagreement in nats.

    Regression values have neither."""
    for member, own in zip(members, alone, strict=True):
        agrees = agreeing(own, answers)
        if agrees is not None:
            yes = int(agrees.sum())
            metrics.member_agreed(ensemble.name, member.name, yes, len(agrees) - yes)
    if not isinstance(answers, FusedValues):
        metrics.disagreement_seen(ensemble.name, answers.disagreement.tolist())
