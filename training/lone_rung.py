"""Makes a rung of the leaderboard from one adapter: it can be served in place of an ensemble, at one pass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.bundle import Bundle
from serve.fusion.fitting.fit import fit_fusion
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fuse import Fusion
from serve.fusion.fused import Answers
from serve.manifest import Ensemble, FusionSpec, Member
from training.evaluation.evaluation import Evaluation, Labelled
from training.evaluation.golden_inputs import golden_answers
from training.leaderboard.board import RungKind
from training.leaderboard.rungs import write_rung
from training.progress import Watch


@dataclass(frozen=True)
class LoneRung:
    """A rung of one adapter that was written into its bundle."""

    manifest: Ensemble
    """The manifest that serves the adapter under the ensemble's name, with its fitted temperature or thresholds."""
    file: Path
    """The file of the manifest, for `choir swap NAME --manifest FILE`."""
    validation: Answers | None
    """The served answers to the validation rows; None for generation."""


def write_lone_rung(
    bundle: Bundle,
    ensemble: Ensemble,
    member: Member,
    kind: RungKind,
    rows: Labelled,
    note: dict[str, Any],
    watch: Watch,
) -> LoneRung:
    """Write the rung in which `member` alone answers for `ensemble`. Its adapter must be in the bundle.

    The temperature or the thresholds are fitted on the validation rows `rows`, as the ensemble's are, and the member's
    outputs for them are stored beside those of the others. `note` says how the rung was made. Raises BundleError and
    RecipeError."""
    alone = ensemble.model_copy(
        update={
            "members": [member.model_copy(update={"weight": None})],
            "fusion": FusionSpec(method="average"),
            "thresholds": {},
            "golden": [],
            "scores": {},
        }
    )
    answers = None
    if ensemble.task != "generation":
        alone, answers = _fitted(bundle, ensemble, alone, rows, watch)
    file = write_rung(bundle, member.name, kind, alone, note)
    return LoneRung(alone, file, answers)


def _fitted(
    bundle: Bundle, ensemble: Ensemble, alone: Ensemble, rows: Labelled, watch: Watch
) -> tuple[Ensemble, Answers]:
    scores = bundle.validation_scores(ensemble.name)
    stored = scores.rows()
    assert stored is not None, "training stores the validation rows of every task but generation"
    outputs = Evaluation(bundle, alone, watch).outputs(rows)
    scores.write_outputs(alone.members[0], stored.header.rows, outputs[0])
    given = stored.header.options
    options = FusionOptions(
        method="average",
        candidates=["average"],
        criterion=given.criterion,
        temperature=given.temperature,
        thresholds=given.thresholds,
        abstain=given.abstain,
    )
    fitted = fit_fusion(alone, options, outputs, stored.truth, stored.folds)
    served = Fusion(fitted.ensemble)(outputs)
    golden = golden_answers(rows, stored.truth, served, ensemble.labels or [])
    manifest = fitted.ensemble.model_copy(update={"golden": golden[: len(ensemble.golden)]})
    return manifest, fitted.validation["average"]
