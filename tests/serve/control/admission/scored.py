"""Bundles whose fusion was fitted on stored validation scores, for tests of fits after a swap."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from serve.bundle import Bundle
from serve.digest import folder_digest
from serve.fusion.fitting.note import noted
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fitting.stored_scores import Question, RowsHeader, ValidationRows
from serve.fusion.stack import LinearStack
from serve.manifest import AdapterRef, Ensemble, Member
from serve.protocol.views import EnsembleView
from tests.serve.fakes import LABELS, make_bundle
from tests.serve.world import World

ROWS = 60
DIGEST = f"sha256:{'5' * 64}"
"""The digest of the validation rows."""
STACK = "fusion/intents/2/stack.json"


def said(seed: int, skill: float) -> NDArray[np.float64]:
    """A member's outputs for N rows and C labels, [N, C]."""
    scores = np.random.default_rng(seed).normal(size=(ROWS, len(LABELS)))
    scores[np.arange(ROWS), TRUTH] += skill
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def add_a_space(file: Path) -> None:
    file.chmod(0o644)
    file.write_text(file.read_text() + " ")


TRUTH = np.random.default_rng(0).integers(len(LABELS), size=ROWS)
SAID = {"a": said(1, 2.0), "b": said(2, 0.7), "100": said(3, 0.4), "101": said(4, 3.0)}
"""Member or new adapter -> its outputs for the rows; 100 is a poor one, 101 a good one."""


def fitted_bundle(world: World, *, by_hand: bool = False, **changes: Any) -> Bundle:
    """Give version 2 fitted numbers of any value, since a swap must not depend on them. `by_hand`: without a note of
    the fit."""
    bundle = make_bundle(world.folder / "bundle")
    first = bundle.ensemble("intents").model_dump(mode="json", exclude_none=True)
    for member, weight in zip(first["members"], (0.7, 0.3), strict=True):
        member["weight"] = weight
    ensemble = Ensemble.model_validate(first | {"version": 2} | changes)
    if ensemble.fusion.parameters is not None:
        both = np.stack([SAID["a"], SAID["b"]])
        LinearStack.fit(both, TRUTH, ensemble).write(bundle.path / STACK)
    bundle.write_ensemble(ensemble if by_hand else noted(ensemble, "fitted", ROWS))
    world.bundles = [bundle]
    return bundle


def store_scores(
    world: World,
    bundle: Bundle,
    said: Mapping[str, NDArray[np.float64]] = SAID,
    **options: Any,
) -> None:
    """Store validation scores of members and candidates, as training does."""
    ensemble = bundle.ensemble("intents")
    stored = bundle.validation_scores("intents")
    header = RowsHeader(
        rows=DIGEST, question=Question.of(ensemble), options=FusionOptions(**options)
    )
    stored.write_rows(ValidationRows(header, TRUTH, np.arange(ROWS) % 5))
    members = {member.name: member for member in ensemble.members}
    for name, outputs in said.items():
        stored.write_outputs(members.get(name) or new_member(world, name), DIGEST, outputs)


def new_member(world: World, seed: str) -> Member:
    world.new_adapter(int(seed))
    digest = folder_digest(world.folder / "new" / seed)
    return Member(name="new", adapters=[AdapterRef(adapter="new", digest=digest)])


def same_content(one: str, other: Path) -> bool:
    return Path(one).read_bytes() == other.read_bytes()


async def view_of(world: World) -> EnsembleView:
    view = await world.controller.ensemble("intents")
    assert isinstance(view, EnsembleView)
    return view


def held(world: World, version: int) -> Ensemble:
    return world.engines[0].held[f"intents@{version}"].ensemble


def best_temperature(pooled: NDArray[np.float64]) -> float:
    """The reference: scikit-learn's loss, minimised by another search."""

    def loss(temperature: float) -> float:
        powers = pooled ** (1 / temperature)
        return float(log_loss(TRUTH, powers / powers.sum(axis=1, keepdims=True)))

    return float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x)
