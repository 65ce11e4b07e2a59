"""The rungs of generation: written answers to the validation rows and to the judged ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.fusion.answers import MEMBER_SCORES, member_scores
from serve.fusion.ranking.ranker import Ranker
from serve.manifest import TEXT_METHODS, Ensemble, Extract, FusionSpec, Member, Method
from training.evaluation.evaluation import Evaluation, Labelled, method_texts
from training.evaluation.metrics.resampling import Floats, Metric
from training.evaluation.metrics.text import text_metrics
from training.evaluation.texts.ranking import (
    cross_ranked,
    fit_ranker,
    ranked_by,
    ranked_passes,
    ranked_texts,
)
from training.leaderboard.board import RungKind
from training.leaderboard.criteria import LOWER_IS_BETTER, judged_by
from training.leaderboard.judgement import Entry
from training.leaderboard.labels import SINGLE, draft, member_name
from training.leaderboard.rungs import StoredRung
from training.progress import Watch

FOLDS = 5
"""Parts of the validation rows: the best member of each part is chosen on the others."""


@dataclass(frozen=True)
class _Texts:
    """What one rung writes."""

    name: str
    kind: RungKind
    manifest: Ensemble
    validation: Sequence[str]
    judged: Sequence[str]
    passes: float
    ranker: Ranker | None = None


class Written:
    """The rungs of one ensemble of generation."""

    def __init__(
        self,
        bundle: Bundle,
        ensemble: Ensemble,
        max_new_tokens: int,
        watch: Watch,
        extract: Extract | None = None,
    ) -> None:
        """`extract` says what of a text `vote` and `mbr` compare, unless the manifest does."""
        self._bundle = bundle
        self._ensemble = ensemble
        self._max_new_tokens = max_new_tokens
        self._watch = watch
        self._extract = ensemble.fusion.extract or extract

    def entries(
        self, made: Sequence[StoredRung], validation: Labelled, judged: Labelled | None
    ) -> list[Entry]:
        """Write the answers of each member, of each rung that was `made`, and of each fusion method. Without `judged`
        rows, the validation rows are judged. Raises BundleError."""
        several = [validation] if judged is None else [validation, judged]
        members = self._alone(
            self._ensemble.members,
            [member_name(self._ensemble, member.name, made) for member in self._ensemble.members],
            ["member"] * len(self._ensemble.members),
            several,
        )
        others = self._alone(
            [rung.manifest.members[0] for rung in made],
            [rung.name for rung in made],
            [rung.kind for rung in made],
            several,
        )
        fused = self._fused(members, several)
        rows = [validation, judged or validation]
        entries = [_entry(each, rows) for each in members]
        single = _single(members, entries, rows)
        return [*entries, single, *(_entry(each, rows) for each in [*others, *fused])]

    def _alone(
        self,
        members: Sequence[Member],
        names: Sequence[str],
        kinds: Sequence[RungKind],
        rows: Sequence[Labelled],
    ) -> list[_Texts]:
        if not members:
            return []
        renamed = [
            member.model_copy(update={"name": name, "weight": None})
            for member, name in zip(members, names, strict=True)
        ]
        evaluation = self._evaluation(self._ensemble.model_copy(update={"members": renamed}))
        answers = [evaluation.answers(each) for each in rows]
        return [
            _Texts(
                name,
                kind,
                draft(self._ensemble, [member]),
                answers[0][place],
                answers[-1][place],
                passes=1,
            )
            for place, (member, name, kind) in enumerate(zip(members, names, kinds, strict=True))
        ]

    def _fused(self, members: Sequence[_Texts], rows: Sequence[Labelled]) -> list[_Texts]:
        if len(members) < 2:
            return []
        ensemble = self._ensemble
        evaluation = self._evaluation(ensemble)
        answers = [[each.validation for each in members], [each.judged for each in members]]
        written = [
            method_texts(ensemble, own, evaluation.fused(each), self._extract)
            for own, each in zip(answers[: len(rows)], rows, strict=True)
        ]
        return [
            _Texts(
                method,
                "fusion",
                self._by(method),
                texts,
                written[-1][method],
                passes=len(ensemble.members),
            )
            for method, texts in written[0].items()
        ] + [self._stacked(evaluation, rows)]

    def _by(self, method: Method) -> Ensemble:
        """Return the manifest of all members fused by one method. Ties among answers need the members' scores."""
        ensemble = self._ensemble
        spec = FusionSpec(method=method, extract=self._extract if method in TEXT_METHODS else None)
        scores = {MEMBER_SCORES: member_scores(ensemble)}
        return draft(ensemble, ensemble.members).model_copy(
            update={"members": ensemble.members, "fusion": spec, "scores": scores}
        )

    def _stacked(self, evaluation: Evaluation, rows: Sequence[Labelled]) -> _Texts:
        """Fit a ranker to the validation rows. Each of them is ranked by one that has not seen it."""
        ensemble = self._by("average")
        candidates = [evaluation.candidates(each) for each in rows]
        ranker = fit_ranker(ensemble, candidates[0], rows[0].references)
        held_out = cross_ranked(ensemble, candidates[0], rows[0].references)
        served = held_out if len(rows) == 1 else ranked_texts(ensemble, ranker, candidates[1])
        manifest = ensemble.model_copy(
            update={"fusion": ranked_by(ensemble, "stack", f"fusion/{ensemble.name}/stack")}
        )
        passes = ranked_passes([each.texts for each in candidates[0]])
        return _Texts("stack", "fusion", manifest, held_out, served, passes, ranker)

    def _evaluation(self, ensemble: Ensemble) -> Evaluation:
        return Evaluation(self._bundle, ensemble, self._watch, max_new_tokens=self._max_new_tokens)


def _entry(texts: _Texts, rows: Sequence[Labelled]) -> Entry:
    validation, judged = rows
    own = text_metrics(texts.validation, validation.references)
    return Entry(
        name=texts.name,
        kind=texts.kind,
        passes=texts.passes,
        manifest=texts.manifest,
        parameters=texts.ranker,
        validation=own,
        judged=own if judged is validation else text_metrics(texts.judged, judged.references),
    )


def _single(members: Sequence[_Texts], entries: Sequence[Entry], rows: Sequence[Labelled]) -> Entry:
    """Return the rung of the best member. On the validation rows, each part is answered by the member that is best on
    the other parts."""
    count = len(rows[0].texts)
    folds = np.arange(count) % FOLDS
    held_out = [""] * count
    for fold in np.unique(folds):
        best = _best(entries, folds != fold if (folds != fold).any() else folds == fold)
        for row in np.flatnonzero(folds == fold).tolist():
            held_out[row] = members[best].validation[row]
    chosen = members[_best(entries, np.ones(count, dtype=bool))]
    single = _Texts(SINGLE, "single", chosen.manifest, held_out, chosen.judged, passes=1)
    return _entry(single, rows)


def _best(entries: Sequence[Entry], places: NDArray[np.bool_]) -> int:
    metric, _ = judged_by("generation")
    times = places[None].astype(np.float64)
    scores = [_score(each.validation, metric, times) for each in entries]
    return int(np.argmin(scores) if metric in LOWER_IS_BETTER else np.argmax(scores))


def _score(metrics: Mapping[str, Metric], metric: str, times: Floats) -> float:
    return float(metrics[metric](times)[0])
