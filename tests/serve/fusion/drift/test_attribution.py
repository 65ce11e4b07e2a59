"""Which answers a member decides, against fusing the others from nothing."""

from collections.abc import Callable

import numpy as np
import pytest

from serve.fusion.drift.attribution import left_out
from serve.fusion.fitting.selective import with_selective
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Fused
from serve.fusion.stack import LinearStack
from serve.manifest import Abstain, Ensemble, FusionSpec

Make = Callable[..., Ensemble]
Noisy = Callable[..., tuple[np.ndarray, np.ndarray]]
WEIGHTS = (0.4, 0.35, 0.25)


def answers(fusion: Fusion, outputs: np.ndarray) -> Fused:
    fused = fusion(outputs)
    assert isinstance(fused, Fused)
    return fused


@pytest.mark.parametrize("method", ["average", "weighted_average", "vote"])
def test_changed_answers_are_those_that_the_others_give_differently(
    make_ensemble: Make, noisy: Noisy, method: str
) -> None:
    outputs, _ = noisy(3, 300, 4, skills=(1.5, 1.0, 0.5))
    fusion = Fusion(make_ensemble(WEIGHTS, method=method))
    fused = answers(fusion, outputs)
    found = {each.member: each.changed for each in left_out(fusion, outputs, fused)}
    assert list(found) == ["m0", "m1", "m2"]
    for place, changed in enumerate(found.values()):
        others = [other for other in range(3) if other != place]
        own = np.array([WEIGHTS[other] for other in others])
        if method == "average":
            expected = outputs[others].mean(axis=0).argmax(axis=1)
        elif method == "weighted_average":
            expected = np.tensordot(own / own.sum(), outputs[others], 1).argmax(axis=1)
        else:  # of two voters the heavier one wins
            expected = outputs[others[int(own.argmax())]].argmax(axis=1)
        assert changed.tolist() == (expected != fused.winners).tolist()
        assert changed.any()


def test_the_mean_of_the_others_stands_for_a_member_of_a_stacker(
    make_ensemble: Make, noisy: Noisy
) -> None:
    outputs, truth = noisy(3, 300, 4, skills=(1.5, 1.0, 0.5))
    draft = make_ensemble()
    stack = LinearStack.fit(outputs, truth, draft)
    ensemble = make_ensemble(
        method="stack", model="logistic_regression", parameters="fusion/stack.json"
    )
    fusion = Fusion(ensemble, stack)
    fused = answers(fusion, outputs)
    first = left_out(fusion, outputs, fused)[0]
    filled = outputs.copy()
    filled[0] = (outputs[1] + outputs[2]) / 2
    assert first.changed.tolist() == (answers(fusion, filled).winners != fused.winners).tolist()


def test_abstaining_does_not_stand_in_the_way(make_ensemble: Make, noisy: Noisy) -> None:
    outputs, truth = noisy(3, 50, 4)
    spec = FusionSpec(method="average", abstain=Abstain(risk=0.1))
    draft = make_ensemble()
    fused = answers(Fusion(draft), outputs)
    ensemble = with_selective(draft.model_copy(update={"fusion": spec}), outputs, truth, fused)
    assert len(left_out(Fusion(ensemble), outputs, fused)) == 3


def test_a_lone_member_and_values_have_no_attribution(make_ensemble: Make, noisy: Noisy) -> None:
    outputs, _ = noisy(1, 50, 4)
    alone = Fusion(make_ensemble((None,)))
    assert left_out(alone, outputs, answers(alone, outputs)) == []
    values = Fusion(make_ensemble((None, None), labels=None, task="regression"))
    numbers = np.random.default_rng(0).normal(size=(2, 5))
    assert left_out(values, numbers, values(numbers)) == []


def test_a_member_that_alone_has_a_weight_decides_everything(
    make_ensemble: Make, noisy: Noisy
) -> None:
    outputs, _ = noisy(2, 50, 4)
    fusion = Fusion(make_ensemble((1.0, 0.0), method="weighted_average"))
    one, other = left_out(fusion, outputs, answers(fusion, outputs))
    assert one.changed.all()
    assert not other.changed.any()
