"""The rungs of classification, multilabel and regression: fitted on the validation rows, and judged."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.fusion.fitting.fit import Targets
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.fused import Answers
from serve.manifest import (
    METHODS,
    PREFIX_METHODS,
    Abstain,
    EarlyExit,
    Ensemble,
    FusionSpec,
    Member,
    Method,
)
from training.evaluation.abstaining import abstaining_metrics, given_answers
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
EARLY = "-early"
"""The end of the name of the rung with early exit, after its method."""
EXIT_RISK = 0.05
"""The risk of its early exit, unless the recipe gives one."""


def contenders(
    ensemble: Ensemble, made: Sequence[StoredRung], options: FusionOptions
) -> list[Contender]:
    """Return all rungs of an ensemble before they are fitted: its members, the best of them, the rungs that were
    `made`, and each fusion method. `options` say by what a fusion is fitted."""
    asked = options.methods(ensemble.task)
    methods = [each for each in METHODS[ensemble.task] if each != "gate" or each in asked]
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
        if ensemble.task == "classification":
            # The ensemble's own method, if that is asked member by member.
            method = ensemble.fusion.method if ensemble.fusion.early_exit else "average"
            early = options.early_exit or EarlyExit(risk=EXIT_RISK)
            exits = _by(options, method).model_copy(update={"early_exit": early})
            found.append(FusionContender(f"{method}{EARLY}", "fusion", drawn, exits))
    return found


def label_entries(
    contending: Sequence[Contender],
    rows: FittingRows,
    judged: tuple[MemberOutputs, Targets] | None,
    abstain: Abstain,
    watch: Watch,
    title: str,
) -> list[Entry]:
    """Fit and judge each contender. `judged` are the outputs for the rows to judge and their right answers; None judges
    the validation rows. `abstain` is the bound for which coverage and risk are given. Progress is reported under
    `title`. Raises FusionError for unsound outputs."""
    entries = []
    everything = np.arange(len(rows.truth))
    with counted(watch, title, len(contending)) as advance:
        for contender in contending:
            served = contender.fit(rows, everything)
            crossed = cross_fitted(contender, rows, abstain)
            validation = _metrics(served, crossed.answers, rows.truth, crossed.given)
            figures = validation
            if judged is not None:
                outputs, truth = judged
                answers = served.answers(outputs)
                given = given_answers(served.manifest, answers, abstain)
                figures = _metrics(served, answers, truth, given)
            entries.append(
                Entry(
                    contender.name,
                    contender.kind,
                    crossed.passes,
                    served.manifest,
                    served.parameters,
                    validation,
                    figures,
                )
            )
            advance(1)
    return entries


def _metrics(
    served: Served, answers: Answers, truth: Targets, given: NDArray[np.bool_] | None
) -> dict[str, Metric]:
    shares = served.manifest.fusion.method == "vote"
    return answer_metrics(answers, truth, shares=shares) | abstaining_metrics(answers, truth, given)


def member_name(ensemble: Ensemble, member: str, made: Sequence[StoredRung]) -> str:
    """Return the name of a member's rung: its own, unless another rung has that name."""
    methods = METHODS[ensemble.task]
    early = [f"{method}{EARLY}" for method in PREFIX_METHODS]
    taken = {SINGLE, *methods, *early, *(rung.name for rung in made)}
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
    """Return the options for one method that asks all members. It abstains as the recipe says."""
    lone = {"method": method, "candidates": [method], "early_exit": None}
    return options.model_copy(update=lone)
