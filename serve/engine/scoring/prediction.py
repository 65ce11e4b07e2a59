"""Answers `/v1/predict`: asks members for scores, round by round, and fuses them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve import metrics
from serve.engine.interface import PredictCall, Prediction, Text
from serve.engine.loaded import LoadedVersion
from serve.engine.scoring.attribution import attribute_later
from serve.fusion.asking.asking import Asking, OneMember, Question
from serve.fusion.asking.choice import asking_for
from serve.fusion.drift.figures import agreement_shares
from serve.fusion.errors import FusionError
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers, Fused, FusedValues, agreeing, joined
from serve.fusion.labels.tasks import outputs
from serve.fusion.members import Ints
from serve.fusion.selective.abstain import certainty
from serve.manifest import Member
from serve.together import together
from serve.watching import spans


@dataclass(frozen=True)
class MemberScores:
    """What M members say about N inputs."""

    scores: NDArray[np.float64]
    """[M, N, C] for C labels or one value."""
    prompt_tokens: int
    """Tokens of the inputs, counted once."""
    member_tokens: int
    """Tokens that the members read together."""
    computed_tokens: int
    """Those of them that the engine computed."""


@dataclass(frozen=True)
class BaseVectors:
    """What the base without adapters makes of N inputs."""

    vectors: NDArray[np.float64]
    """[N, H]; of a pair, the vectors of both texts after one another."""
    prompt_tokens: int


Ask = Callable[[Sequence[Member], Sequence[Text]], Awaitable[MemberScores]]
Read = Callable[[Sequence[Text]], Awaitable[BaseVectors]]


async def predicted(
    loaded: LoadedVersion, call: PredictCall, ask: Ask, read: Read | None
) -> Prediction:
    """Returns the fused answers to the call's inputs. `ask` gives the scores of some members for some inputs, `read`
    the base's vectors of some inputs; a base that writes has none, and no gate.

    Raises FusionError if the request's fusion cannot be used, OutputError if the members' scores cannot be fused, and
    what `ask` raises."""
    fusion = loaded.fusion
    assert fusion is not None
    asking, least = _asking(fusion, call)
    prompt_tokens: int | None = None
    member_tokens = computed_tokens = 0
    if asking.reads_base:
        assert read is not None, "a gate over a base that writes is refused at loading"
        base = await read(call.inputs)
        prompt_tokens = member_tokens = computed_tokens = base.prompt_tokens
        asking.route(base.vectors)
    while questions := asking.questions():
        groups = _by_rows(questions)
        said = await together(_ask(group, call, loaded, ask) for group in groups)
        if prompt_tokens is None:  # the first round reads every input
            prompt_tokens = said[0].prompt_tokens
        member_tokens += sum(each.member_tokens for each in said)
        computed_tokens += sum(each.computed_tokens for each in said)
        await asyncio.to_thread(_take, asking, groups, said, loaded)
    metrics.prompt_tokens_shared(loaded.ensemble.name, max(0, member_tokens - computed_tokens))
    usage = (prompt_tokens or 0, member_tokens, computed_tokens)
    prediction = await asyncio.to_thread(_prediction, loaded, call, asking, least, usage)
    if call.member is None and not asking.partial and fusion.is_own(call.method, call.weights):
        attribute_later(fusion, asking.outputs, prediction.answers)
    return prediction


def _asking(fusion: Fusion, call: PredictCall) -> tuple[Asking, float | None]:
    """Returns how members are asked, and how sure an answer must be, lest it abstains."""
    rows = len(call.inputs)
    if call.member is not None:
        if any(each is not None for each in (call.early_exit, call.abstain, call.top_k)):
            raise FusionError(
                "'early_exit', 'abstain' and 'top_k' are for an ensemble, and one member was asked; leave them out."
            )
        return OneMember(fusion, call.member, rows), None
    asking = asking_for(fusion, rows, call.method, call.weights, call.early_exit, call.top_k)
    own = fusion.is_own(call.method, call.weights, call.top_k)
    return asking, fusion.selective.abstain(call.abstain, call.early_exit, own=own)


def _by_rows(questions: Sequence[Question]) -> list[list[Question]]:
    """Returns the questions in groups that are about the same inputs."""
    groups: dict[bytes, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.rows.tobytes(), []).append(question)
    return list(groups.values())


async def _ask(
    group: Sequence[Question], call: PredictCall, loaded: LoadedVersion, ask: Ask
) -> MemberScores:
    members = [loaded.ensemble.members[question.member] for question in group]
    return await ask(members, [call.inputs[row] for row in group[0].rows])


def _take(
    asking: Asking,
    groups: Sequence[Sequence[Question]],
    said: Sequence[MemberScores],
    loaded: LoadedVersion,
) -> None:
    task = loaded.ensemble.task
    pairs = [
        (question, own)
        for group, scores in zip(groups, said, strict=True)
        for question, own in zip(group, outputs(task, scores.scores), strict=True)
    ]
    asking.take([question for question, _ in pairs], [own for _, own in pairs])


def _prediction(
    loaded: LoadedVersion,
    call: PredictCall,
    asking: Asking,
    least: float | None,
    usage: tuple[int, int, int],
) -> Prediction:
    """`usage`: tokens of the inputs, of all members together, and those that were computed."""
    ensemble, fusion = loaded.ensemble, loaded.fusion
    assert fusion is not None
    method = call.method or ensemble.fusion.method
    with spans.within("choir.fusion") as span, metrics.fusing(ensemble.name, method):
        answers = asking.answers()
        span.note(choir__method=method, choir__members=int(asking.asked.any(axis=1).sum()))
    abstained = None
    if least is not None:
        assert isinstance(answers, Fused), "only labels that exclude each other abstain"
        abstained = certainty(answers) < least
        metrics.answers_abstained(ensemble.name, int(abstained.sum()), len(abstained))
    places = np.flatnonzero(asking.asked.any(axis=1))
    members = tuple(ensemble.members[place] for place in places)
    asked = asking.asked[places]
    rows = [np.flatnonzero(each) for each in asked]
    alone = tuple(
        fusion.alone(asking.outputs[place, own], member.name)
        for place, member, own in zip(places, members, rows, strict=True)
    )
    agreement = None
    if call.member is None:
        _count(ensemble.name, members, alone, rows, answers)
        agreement = agreement_shares(answers, alone, rows)
    if asking.partial:
        metrics.members_asked(ensemble.name, int(asking.asked.sum()), asking.asked.size)
    return Prediction(
        version=call.version,
        labels=tuple(ensemble.labels or ()),
        answers=answers,
        members=members,
        member_answers=alone if call.return_members else None,
        prompt_tokens=usage[0],
        member_tokens=usage[1],
        computed_tokens=usage[2],
        agreement=agreement,
        absent=loaded.absent,
        asked=asked if asking.partial else None,
        abstained=abstained,
    )


def _count(
    ensemble: str,
    members: Sequence[Member],
    alone: Sequence[Answers],
    rows: Sequence[Ints],
    answers: Answers,
) -> None:
    """Counts how often each member agrees with the fused answer, and the members' disagreement in nats. `rows`: for
    each member, the inputs that it was asked about.

    Regression values have neither."""
    for member, own, asked in zip(members, alone, rows, strict=True):
        agrees = agreeing(own, joined([answers], asked))
        if agrees is not None:
            yes = int(agrees.sum())
            metrics.member_agreed(ensemble, member.name, yes, len(agrees) - yes)
    if not isinstance(answers, FusedValues):
        metrics.disagreement_seen(ensemble, answers.disagreement.tolist())
