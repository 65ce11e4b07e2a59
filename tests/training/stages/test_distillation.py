"""The losses of distillation against plain formulas, and what a student learns from its teacher."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.bundle import Bundle
from serve.manifest import Member
from tests.training.conftest import TOPICS
from training.offline.members import OfflineMembers
from training.offline.teacher import EnsembleTeacher
from training.recipe import DistillationStage, EnsembleRecipe, TeacherRecipe
from training.recipe.member import MemberRecipe
from training.stages import causal
from training.stages.distillation import (
    answers_of,
    for_answers,
    for_encoder,
    for_labels,
    soft_losses,
    soften,
)
from training.stages.fit import IGNORED

TEXTS = ["my card is lost", "the top up failed", "send money abroad"]


def stage(**options: Any) -> DistillationStage:
    return DistillationStage(teacher=TeacherRecipe(ensemble="topics"), **options)


def recipe(task: str, **options: Any) -> EnsembleRecipe:
    return EnsembleRecipe(
        name="topics",
        task=task,
        members=[MemberRecipe(name="a", stages=[{"kind": "lora"}])],
        **options,
    )


def test_the_soft_loss_is_hintons() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.5, 0.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    temperature = 3.0
    targets = soften(teacher.log(), temperature)
    expected = teacher ** (1 / temperature)
    torch.testing.assert_close(targets, expected / expected.sum(dim=1, keepdim=True))
    loss = soft_losses(logits, targets, temperature).mean()
    divergence = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(1), targets, reduction="batchmean"
    )
    entropy = torch.special.entr(targets).sum(1).mean()
    torch.testing.assert_close(loss, temperature**2 * (divergence + entropy))
    # Its gradient is T (q - p) for each row, with q the student's and p the teacher's softened probabilities.
    [gradient] = torch.autograd.grad(loss, logits)
    student = (logits / temperature).softmax(1)
    torch.testing.assert_close(gradient, temperature * (student - targets) / len(logits))


def test_a_row_without_a_right_answer_has_the_soft_loss_alone() -> None:
    rows = Dataset.from_dict(
        {"logits": [[2.0, 1.0, -1.0], [0.5, 0.0, 3.0]], "labels": [0, IGNORED]}
    )
    teacher = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])

    def collate(features: Any) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([each[key] for each in features]) for key in ("logits", "labels")}

    student = for_encoder(rows, collate, teacher, stage(temperature=1, hard=0.25))
    batch = student.collate([student.features[0], student.features[1]])
    found = student.loss(lambda logits, labels: {"logits": logits}, batch)  # type: ignore[arg-type]
    own = torch.tensor(rows["logits"]).log_softmax(1).numpy()
    soft = -(teacher * own).sum(axis=1)
    assert float(found) == pytest.approx(
        (0.75 * soft[0] - 0.25 * own[0, 0] + soft[1]) / 2, abs=1e-6
    )


@pytest.mark.parametrize(
    ("task", "truth", "teacher"),
    [
        ("multilabel", [[1, 0], [IGNORED, IGNORED]], [[0.9, 0.3], [0.2, 0.6]]),
        ("regression", [2.5, np.nan], [[2.0], [1.0]]),
    ],
)
def test_sets_and_values_are_learned_as_the_teacher_gives_them(
    task: Any, truth: Any, teacher: Any
) -> None:
    """The losses by their formulas; the second row has no right answer."""
    given = np.array([[1.5, -0.5], [0.3, 2.0]])[:, : len(teacher[0])]
    rows = Dataset.from_dict({"logits": given.tolist(), "labels": truth})

    def collate(features: Any) -> dict[str, torch.Tensor]:
        return {key: torch.tensor([each[key] for each in features]) for key in ("logits", "labels")}

    student = for_encoder(rows, collate, np.array(teacher), stage(hard=0.25), task)
    batch = student.collate([student.features[0], student.features[1]])
    found = student.loss(lambda logits, labels: {"logits": logits}, batch)  # type: ignore[arg-type]

    def loss(values: np.ndarray, right: Any) -> float:
        if task == "regression":
            return float(((values - right) ** 2).sum())
        yes = 1 / (1 + np.exp(-values))
        right = np.array(right)
        return float(-(right * np.log(yes) + (1 - right) * np.log(1 - yes)).sum())

    first = 0.75 * loss(given[0], teacher[0]) + 0.25 * loss(given[0], truth[0])
    assert float(found) == pytest.approx((first + loss(given[1], teacher[1])) / 2, abs=1e-5)


@pytest.mark.parametrize("scoring", ["sum", "mean"])
def test_a_students_labels_are_scored_as_they_are_when_it_answers(
    causal_bundle: Bundle, scoring: str
) -> None:
    """With T = 1 the loss is the cross entropy of the offline reference's label probabilities."""
    manifest = causal_bundle.ensemble("topics").model_copy(update={"label_scoring": scoring})
    bare = manifest.model_copy(update={"members": [Member(name="base", adapters=[])]})
    found = OfflineMembers(causal_bundle, bare).outputs(TEXTS)[0]
    teacher = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    labels = list(manifest.labels or [])
    ensemble = recipe(
        "classification",
        label="label",
        template=manifest.template,
        verbalizers=manifest.verbalizers,
        label_scoring=scoring,
    )
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    model = AutoModelForCausalLM.from_pretrained(causal_bundle.base_source, dtype=torch.float32)
    student = for_labels(
        TEXTS, [0, 1, 2], teacher, ensemble, labels, tokenizer, 96, stage(temperature=1, hard=0.25)
    )
    batch = student.collate([student.features[index] for index in range(len(TEXTS))])
    soft = -(teacher * np.log(found)).sum(axis=1).mean()
    hard = -np.log(found[[0, 1, 2], [0, 1, 2]]).mean()
    loss = float(student.loss(model, batch).detach())
    assert loss == pytest.approx(0.75 * soft + 0.25 * hard, abs=1e-4)


def test_a_students_tokens_are_compared_at_every_place_of_the_answer(
    causal_bundle: Bundle,
) -> None:
    manifest = causal_bundle.ensemble("replies")
    bare = manifest.model_copy(update={"members": [Member(name="base", adapters=[])]})
    tokenizer = AutoTokenizer.from_pretrained(causal_bundle.base_source)
    ensemble = recipe("generation", target="reply", template=manifest.template)
    rows = Dataset.from_dict(
        {"text": TEXTS, "reply": ["We send a card.", "Yes.", "We look at it."]}
    )
    plain = causal.member_features(rows, "text", ensemble, tokenizer, 96)
    tops = EnsembleTeacher(causal_bundle, bare).answer_tokens(*answers_of(plain), lambda _: None)
    model = AutoModelForCausalLM.from_pretrained(causal_bundle.base_source, dtype=torch.float32)
    losses = []
    for row, top in zip(plain, tops, strict=True):
        count = sum(label != IGNORED for label in row["labels"])
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, -count - 1 : -1]
        best = logits.double().log_softmax(-1).topk(32)
        np.testing.assert_allclose(top.log_probs, best.values, atol=1e-5)
        # The student is the teacher, at T = 2 over all tokens; the teacher at T = 2 over its best 32.
        teacher = (best.values / 2).softmax(-1)
        student = (logits.double() / 2).log_softmax(-1).gather(1, best.indices)
        losses += (-4 * (teacher * student).sum(-1)).tolist()
    found = for_answers(plain, causal.collate_for(tokenizer), tops, stage(hard=0))
    batch = found.collate([found.features[index] for index in range(len(TEXTS))])
    assert float(found.loss(model, batch).detach()) == pytest.approx(np.mean(losses), abs=1e-4)


def agreement(bundle: Bundle, name: str, teacher: np.ndarray, texts: list[str]) -> float:
    """Mean divergence of the only member of `name` from the teacher's probabilities."""
    found = OfflineMembers(bundle, bundle.ensemble(name)).outputs(texts)[0]
    return float((teacher * np.log(teacher / found)).sum(axis=1).mean())


@pytest.mark.parametrize(
    "kind", ["chain_bundle", pytest.param("encoder_chain_bundle", marks=pytest.mark.slow)]
)
def test_a_distilled_member_is_closer_to_its_teacher(
    kind: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    texts = [ask for asks in TOPICS.values() for ask in asks]
    teacher = EnsembleTeacher(bundle, bundle.ensemble("topics")).soft_answers(
        texts, None, lambda _: None
    )
    assert agreement(bundle, "student", teacher, texts) < agreement(
        bundle, "undistilled", teacher, texts
    )
    # Distillation continues an adapter, and does not add another one.
    [before] = bundle.ensemble("undistilled").members
    [after] = bundle.ensemble("student").members
    assert len(before.adapters) == len(after.adapters)


def test_the_report_shows_what_each_stage_gained(chain_bundle: Bundle) -> None:
    report = json.loads((chain_bundle.path / "report" / "metrics.json").read_text())
    rows = {
        each["ensemble"]: [row["name"] for row in each["rows"]]
        for each in report["reports"]
        if each["data"] == "stage-by-stage validation"
    }
    assert rows["student@1"] == [
        "base",
        "base + pretraining",
        "base + pretraining + fine_tuning",
        "a: lora",
        "a: lora + prompt",
        "a: lora + prompt + distillation",
    ]
