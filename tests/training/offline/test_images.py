"""Members over bases that write about images, offline: against transformers and PEFT, one input at a time."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from serve.bundle import BaseSpec, Bundle
from serve.labels import LabelError
from serve.manifest import Ensemble, Member
from tests.serve import seeing, towers
from tests.serve.images.hostile import url_of
from training.offline.members import OfflineMembers

LABELS = ["cat", "two dogs", "sofa"]
PICTURES = towers.pictures(4, seed=3)
URLS = list(map(url_of, PICTURES))
CELLS = [URLS[0], f"{URLS[1]}\nwhere is it\nnow?", "a text alone", URLS[2], f"{URLS[0]}\nwhy"]
"""Two of the images are of one size in tokens, and two inputs of one length."""
LIMIT = 6


@pytest.fixture(scope="module", params=["idefics3", pytest.param("llava", marks=pytest.mark.slow)])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    family = cast(seeing.Family, request.param)
    folder = tmp_path_factory.mktemp(family)
    # transformers reads the names that transformers 5 writes, and so do those who train.
    base = seeing.base(family, folder / "base", published=False)
    made = Bundle.create(folder / "bundle", BaseSpec(path=str(base), kind="causal"))
    for seed, (name, targets) in enumerate(seeing.TARGETS[family].items()):
        made.add_adapter(name, seeing.lora(base, folder / name, targets, seed=seed, rank=4))
    made.add_adapter("prefix", seeing.prefix(base, folder / "prefix", seed=8, tokens=3))
    made.add_adapter("prompt", seeing.prompt(base, folder / "prompt", seed=9, tokens=3))
    return made


def ensemble(bundle: Bundle, *names: str, **content: Any) -> Ensemble:
    """The base, and the members with these adapters."""
    members = []
    for name in names:
        ref = bundle.add_adapter(name, bundle.path.parent / name)
        members.append(Member(name=name, adapters=[ref]))
    return Ensemble.model_validate(
        {
            "format": 1,
            "name": "seen",
            "version": 1,
            "fusion": {"method": "average"},
            "members": [*(each.model_dump() for each in members), {"name": "base", "adapters": []}],
            **content,
        }
    )


def reference(bundle: Bundle, member: Member) -> seeing.Reference:
    adapter = bundle.adapter_dir(member.adapters[0]) if member.adapters else None
    return seeing.Reference(Path(bundle.base_source), adapter)


def prompt(cell: str, form: str) -> tuple[str, list[Any]]:
    """What the processor reads: the prompt with `<image>`, and its images."""
    for url, picture in zip(URLS, PICTURES, strict=True):
        if cell.startswith(url):
            text = cell.removeprefix(url).removeprefix("\n")
            return form.format(image="<image>", text=text), [picture]
    return form.format(image="", text=cell), []


@pytest.mark.parametrize(
    ("names", "template", "form"),
    [
        (
            ["language", "tower", "connector"],
            "USER: {image}\n{text} it shows a",
            "USER: {image}\n{text} it shows a",
        ),
        (["both", "prefix", "prompt"], "look {text} at a", "look {image}{text} at a"),
    ],
)
def test_labels_are_scored_as_transformers_scores_them(
    bundle: Bundle, names: list[str], template: str, form: str
) -> None:
    content = {"labels": LABELS, "template": template, "label_scoring": "mean"}
    asked = ensemble(bundle, *names, task="classification", **content)
    found = np.log(OfflineMembers(bundle, asked).outputs(CELLS))
    for member, own in zip(asked.members, found, strict=True):
        peft = reference(bundle, member)
        expected = [
            peft.probabilities(*prompt(cell, form), [f" {label}" for label in LABELS])
            for cell in CELLS
        ]
        np.testing.assert_allclose(own, np.log(expected), atol=1e-3)
    assert np.abs(found[:-1] - found[-1]).max(axis=(1, 2)).min() > 0.1  # each adapter changes some


def test_answers_are_written_as_transformers_writes_them(bundle: Bundle) -> None:
    form = "USER: {image}{text} ASSISTANT:"
    asked = ensemble(bundle, "tower", task="generation", template=form)
    members = OfflineMembers(bundle, asked)
    for member in asked.members:
        peft = reference(bundle, member)
        written = [each.tokens for each in members.written(member, CELLS, LIMIT)]
        for cell, own in zip(CELLS, written, strict=True):
            assert len(own) == LIMIT or own[-1] == peft.processor.tokenizer.eos_token_id
            rows = peft.log_probs(*prompt(cell, form), list(own))
            assert list(own) == rows.argmax(-1).tolist()
    scores = members.log_probs(CELLS, written, LIMIT)
    for member, own_scores in zip(asked.members, scores, strict=True):
        peft = reference(bundle, member)
        for cell, tokens, score in zip(CELLS, written, own_scores, strict=True):
            rows = peft.log_probs(*prompt(cell, form), list(tokens))
            total = sum(float(row[token]) for row, token in zip(rows, tokens, strict=True))
            assert score == pytest.approx(total, abs=1e-4)


def test_members_write_together_about_an_image(bundle: Bundle) -> None:
    """Each token is the first by the average of the members' probabilities, after the ones before."""
    asked = ensemble(bundle, "tower", task="generation", template="{image}{text}:")
    [written] = OfflineMembers(bundle, asked).fused_written(CELLS[1:2], "average", LIMIT)
    given = prompt(CELLS[1], "{image}{text}:")
    rows = np.mean(
        [
            reference(bundle, member).log_probs(*given, list(written.tokens)).exp().numpy()
            for member in asked.members
        ],
        axis=0,
    )
    for row, token in zip(rows, written.tokens, strict=True):
        assert row[token] == pytest.approx(row.max(), abs=1e-6)


def test_what_stands_for_an_image_is_refused_in_texts(bundle: Bundle) -> None:
    asked = ensemble(bundle, task="classification", labels=LABELS)
    with pytest.raises(LabelError, match="holds <image>, which stands for an image"):
        OfflineMembers(bundle, asked).outputs([f"{URLS[0]}\nan <image>"])


def test_an_image_is_never_cut(bundle: Bundle) -> None:
    asked = ensemble(bundle, task="classification", labels=LABELS)
    members = OfflineMembers(bundle, asked)
    assert members.outputs(["a very long text " * 200]).shape == (1, 1, 3)
    with pytest.raises(LabelError, match="take a smaller image or a shorter text"):
        members.outputs([f"{URLS[0]}\n{'a very long text ' * 200}"])
