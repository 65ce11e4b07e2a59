"""The rungs of classification, multilabel and regression: fitted on the validation rows, and judged."""

from collections.abc import Sequence

import numpy as np

from serve.fusion.fitting.fit import Targets
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fused import Answers
from serve.manifest import METHODS, Ensemble, FusionSpec, Member, Method
from training.evaluation.evaluation import answer_metrics
from training.evaluation.metrics.resampling import Metric
from training.leaderboard.contender import (
    BestMember,
    Contender,
    FittingRows,
    FusionContender,
    Served,
    cross_fitted,
)
from training.leaderboard.judgement import Entry
from training.leaderboard.outputs import MemberOutputs
from training.leaderboard.rungs import StoredRung
from training.progress import Watch, counted

SINGLE = "single"
"""The name of the rung of the best member."""


def contenders(
    ensemble: Ensemble, made: Sequence[StoredRung], options: FusionOptions
) -> list[Contender]:
    """Return all rungs of an ensemble before they are fitted: its members, the best of them, the rungs that were
    `made`, and each fusion method. `options` say by what a fusion is fitted."""
    methods = METHODS[ensemble.task]
    lone = alone(options)
    members = [
        FusionContender(
            member_name(ensemble, member.name, made),
            "member",
            draft(ensemble, [member]),
            lone,
        )
        for member in ensemble.members
    ]
    found: list[Contender] = [*members, BestMember(SINGLE, members, options)]
    found += [
        FusionContender(rung.name, rung.kind, draft(ensemble, rung.manifest.members), lone)
        for rung in made
    ]
    if len(ensemble.members) > 1:
        drawn = draft(ensemble, ensemble.members)
        for method in methods:
            found.append(FusionContender(method, "fusion", drawn, _by(options, method)))
    return found


def label_entries(
    contending: Sequence[Contender],
    rows: FittingRows,
    judged: tuple[MemberOutputs, Targets] | None,
    watch: Watch,
    title: str,
) -> list[Entry]:
    """Fit and judge each contender. `judged` are the outputs for the rows to judge and their right answers; None judges
    the validation rows. Progress is reported under `title`. Raises FusionError for unsound outputs."""
    entries = []
    everything = np.arange(len(rows.truth))
    with counted(watch, title, len(contending)) as advance:
        for contender in contending:
            served = contender.fit(rows, everything)
            held_out = cross_fitted(contender, rows)
            validation = _metrics(served, held_out, rows.truth)
            figures = validation
            if judged is not None:
                outputs, truth = judged
                figures = _metrics(served, served.answers(outputs), truth)
            entries.append(
                Entry(
                    contender.name,
                    contender.kind,
                    len(served.manifest.members),
                    served.manifest,
                    served.stack,
                    validation,
                    figures,
                )
            )
            advance(1)
    return entries


def _metrics(served: Served, answers: Answers, truth: Targets) -> dict[str, Metric]:
    return answer_metrics(answers, truth, shares=served.manifest.fusion.method == "vote")


def member_name(ensemble: Ensemble, member: str, made: Sequence[StoredRung]) -> str:
    """Return the name of a member's rung: its own, unless another rung has that name."""
    taken = {SINGLE, *METHODS[ensemble.task], *(rung.name for rung in made)}
    return f"member-{member[:56]}" if member in taken else member


def draft(ensemble: Ensemble, members: Sequence[Member]) -> Ensemble:
    """Return the manifest of these members under the ensemble's name, with nothing fitted."""
    plain = [member.model_copy(update={"weight": None}) for member in members]
    fusion = FusionSpec(method="average")
    cleared = {"fusion": fusion, "thresholds": {}, "golden": [], "scores": {}}
    return ensemble.model_copy(update={"members": plain, **cleared})


def alone(options: FusionOptions) -> FusionOptions:
    """Return the options for one member: nothing is fitted but its temperature or its thresholds."""
    return _by(options, "average")


def _by(options: FusionOptions, method: Method) -> FusionOptions:
    """Return the options for one method."""
    return options.model_copy(update={"method": method, "candidates": [method]})
