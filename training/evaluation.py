"""Members and every fusion method side by side, on rows with known answers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from serve.bundle import Bundle, Ensemble
from serve.fusion.answers import vote_answers
from serve.fusion.fuse import Fused, Fusion
from serve.manifest import TokenMethod
from training.baselines import tfidf_svc
from training.bleu import Bleu
from training.data.loading import load_rows
from training.data.splits import load_splits
from training.predict import OfflineMembers
from training.progress import progress_bars, quiet_libraries
from training.recipe import EnsembleRecipe, Recipe, RecipeError
from training.run import WORK, recorded_recipe
from training.scores import (
    Difference,
    Report,
    Row,
    classification_scores,
    generation_scores,
)

Advance = Callable[[int], None]

MAX_NEW_TOKENS = 64
TOKEN_METHODS: tuple[TokenMethod, ...] = ("average", "product")
ANSWER_COLUMN = {"classification": "label", "generation": "target"}
"""Column of the right answers where no recipe names one."""
HEADINGS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "ECE",
    "exact_match": "exact match",
    "token_f1": "word F1",
    "bleu": "BLEU",
}


@dataclass(frozen=True)
class Labelled:
    """Texts and their right answers."""

    texts: Sequence[str]
    answers: Sequence[str]
    """Labels, or replies (the first one of a text that has several)."""
    name: str
    """What the rows are, for the report: `test`, `validation` or a file's name."""
    references: Sequence[Sequence[str]] = ()
    """Generation: every right reply to each text."""

    @classmethod
    def replies(cls, texts: Sequence[str], answers: Sequence[str], name: str) -> "Labelled":
        """Rows of generation: equal texts become one, whose answers are all right."""
        rights: dict[str, list[str]] = {}
        for text, answer in zip(texts, answers, strict=True):
            rights.setdefault(text, []).append(answer)
        return cls(list(rights), [right[0] for right in rights.values()], name, [*rights.values()])

    def first(self, count: int) -> "Labelled":
        """The first `count` texts."""
        return replace(
            self,
            texts=self.texts[:count],
            answers=self.answers[:count],
            references=self.references[:count],
        )


class Evaluation:
    """One ensemble of a bundle, its members loaded."""

    def __init__(
        self, bundle: Bundle, ensemble: Ensemble, *, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self.ensemble = ensemble
        self._bundle = bundle
        self._members = OfflineMembers(bundle, ensemble)
        self._max_new_tokens = max_new_tokens

    def probabilities(self, data: Labelled) -> NDArray[np.float64]:
        """The members' label probabilities [M, N, C]."""
        with self._progress(data) as advance:
            return self._members.probabilities(data.texts, advance)

    def answers(self, data: Labelled) -> list[list[str]]:
        """The members' greedy answers [M][N]."""
        with self._progress(data) as advance:
            return self._members.answers(data.texts, self._max_new_tokens, advance)

    def fused(self, data: Labelled) -> dict[str, list[str]]:
        """The greedy answers of each method that fuses at every token."""
        answers: dict[str, list[str]] = {}
        for method in TOKEN_METHODS:
            with self._progress(data, method) as advance:
                answers[method] = self._members.fused_answers(
                    data.texts, method, self._max_new_tokens, advance
                )
        return answers

    def report(self, ensemble: Ensemble, data: Labelled) -> Report:
        """Figures of members and fusion methods by the manifest `ensemble`, which names the same members."""
        if ensemble.task == "generation":
            return generation_report(ensemble, data, self.answers(data), self.fused(data))
        truth = label_indices(ensemble, data)
        probabilities = self.probabilities(data)
        fusion = Fusion.from_manifest(ensemble, self._bundle.fusion_path(ensemble))
        fused: dict[str, Fused] = {
            method: fusion(probabilities, method=method) for method in fusion.methods
        }
        return classification_report(ensemble, data, probabilities, truth, fused)

    @contextmanager
    def _progress(self, data: Labelled, method: str | None = None) -> Iterator[Advance]:
        total = len(data.texts) * (1 if method else len(self.ensemble.members))
        title = f"{self.ensemble.name}: {data.name}" + (f", {method}" if method else "")
        with progress_bars() as bars:
            task = bars.add_task(title, total=total, loss="")
            yield lambda done: bars.advance(task, done)


def classification_report(
    ensemble: Ensemble,
    data: Labelled,
    probabilities: NDArray[np.float64],
    truth: NDArray[np.int64],
    fused: Mapping[str, Fused],
) -> Report:
    """Figures from member probabilities [M, N, C], true label indices [N] and each method's answers."""
    rows = []
    for member, answers in zip(ensemble.members, probabilities, strict=True):
        scores = classification_scores(answers, answers.argmax(axis=1), truth)
        rows.append(Row(name=member.name, kind="member", passes=1, served=False, scores=scores))
    for method, answered in fused.items():
        # A share of votes is often 0, where the log loss has no meaning.
        shares = None if method == "vote" else answered.probabilities
        scores = classification_scores(shares, answered.winners, truth)
        served = method == ensemble.fusion.method
        rows.append(
            Row(
                name=method,
                kind="fusion",
                passes=len(ensemble.members),
                served=served,
                scores=scores,
            )
        )
    return Report(ensemble=ensemble.id, data=data.name, count=len(truth), rows=rows)


def generation_report(
    ensemble: Ensemble,
    data: Labelled,
    answers: Sequence[Sequence[str]],
    fused: Mapping[str, Sequence[str]],
) -> Report:
    """Figures from the members' answers [M][N], the vote among them, and what they wrote together by each method."""
    voted = [texts[vote_answers(ensemble, texts).winner] for texts in zip(*answers, strict=True)]
    names = [member.name for member in ensemble.members]
    written = [*answers, voted, *fused.values()]
    bleu = Bleu(written, data.references)
    rows = []
    for system, (name, texts) in enumerate(zip([*names, "vote", *fused], written, strict=True)):
        member = system < len(names)
        found = bleu.interval(system)
        rows.append(
            Row(
                name=name,
                kind="member" if member else "fusion",
                passes=1 if member else len(names),
                served=not member and name == ensemble.fusion.method,
                scores={**generation_scores(texts, data.references), "bleu": found.value},
                bleu_interval=(found.low, found.high),
            )
        )
    return Report(
        ensemble=ensemble.id,
        data=data.name,
        count=len(data.texts),
        rows=rows,
        differences=_differences(bleu, rows),
    )


def _differences(bleu: Bleu, rows: Sequence[Row]) -> list[Difference]:
    """Each fusion method against the best member and against the members' mean."""
    members = [system for system, row in enumerate(rows) if row.kind == "member"]
    best = max(members, key=lambda system: bleu.scores[system])
    found = []
    for system in range(len(members), len(rows)):
        for over, others in (
            (f"best member ({rows[best].name})", [best]),
            ("mean member", members),
        ):
            gap = bleu.difference(system, others)
            found.append(
                Difference(
                    name=rows[system].name, over=over, value=gap.value, low=gap.low, high=gap.high
                )
            )
    return found


def with_baselines(
    report: Report, recipe: EnsembleRecipe, ensemble: Ensemble, known: Labelled, data: Labelled
) -> Report:
    """The report and the recipe's baselines, fitted on `known` and scored on `data`."""
    rows = list(report.rows)
    for name in recipe.baselines:
        winners = tfidf_svc(known.texts, label_indices(ensemble, known), data.texts)
        scores = classification_scores(None, winners, label_indices(ensemble, data))
        rows.append(Row(name=name, kind="baseline", passes=0, served=False, scores=scores))
    return report.model_copy(update={"rows": rows})


def label_indices(ensemble: Ensemble, data: Labelled) -> NDArray[np.int64]:
    """Index of each row's label [N]; raises RecipeError for a label that the ensemble does not have."""
    index = {label: number for number, label in enumerate(ensemble.labels or [])}
    unknown = sorted(set(data.answers) - set(index))
    if unknown:
        raise RecipeError(
            f"{data.name}: the label {unknown[0]!r} is not one of the {len(index)} of {ensemble.id}"
        )
    return np.array([index[answer] for answer in data.answers], dtype=np.int64)


def evaluate_bundle(
    bundle_path: Path, ensemble: str, data: Path | None, json_path: Path | None
) -> None:
    """`choir evaluate`: print the table, and write it as JSON where asked.

    Without `data`, the rows are the recipe's test rows (its validation rows if it names none). Raises RecipeError and
    BundleError.
    """
    bundle = Bundle.open(bundle_path)
    manifest = bundle.ensemble(ensemble)
    recipe = recorded_recipe(bundle.path)
    own = recipe.find(ensemble) if recipe else None
    quiet_libraries()
    rows, known = _rows(bundle, manifest, recipe, own, data)
    limit = own.max_new_tokens if own else MAX_NEW_TOKENS
    report = Evaluation(bundle, manifest, max_new_tokens=limit).report(manifest, rows)
    if own and known:
        report = with_baselines(report, own, manifest, known, rows)
    show(report, Console())
    if json_path is not None:
        json_path.write_text(json.dumps(report.model_dump(), indent=2) + "\n", encoding="utf-8")


def table(report: Report) -> Table:
    """The report for a terminal; the row that the ensemble answers by is bold."""
    scores = [score for score in HEADINGS if any(score in row.scores for row in report.rows)]
    title = f"{report.ensemble} on {report.count} {report.data} rows (bold: what is served)"
    shown = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    shown.add_column("kind")
    for score in scores:
        shown.add_column(HEADINGS[score], justify="right")
    shown.add_column("passes", justify="right")
    for row in report.rows:
        figures = [figure(row, score) for score in scores]
        shown.add_row(
            row.name, row.kind, *figures, str(row.passes), style="bold" if row.served else None
        )
    return shown


def show(report: Report, console: Console) -> None:
    console.print(table(report))
    for line in difference_lines(report):
        console.print(line, soft_wrap=True, highlight=False)


def figure(row: Row, score: str) -> str:
    """A figure of the report as text; empty where the row has none."""
    if score not in row.scores:
        return ""
    if score == "bleu" and row.bleu_interval is not None:
        low, high = row.bleu_interval
        return f"{row.scores[score]:.2f} [{low:.2f}, {high:.2f}]"
    return f"{row.scores[score]:.4f}"


def difference_lines(report: Report) -> list[str]:
    """What fusing gained, in sentences."""
    return [
        f"{gap.name} over the {gap.over}: {gap.value:+.2f} BLEU, 95% of resamples in [{gap.low:+.2f}, {gap.high:+.2f}]"
        for gap in report.differences
    ]


def labelled(rows: Dataset, name: str, recipe: Recipe, ensemble: EnsembleRecipe) -> Labelled:
    """An ensemble's view of the rows; a generation ensemble takes only as many texts as its recipe says."""
    texts = list(rows[recipe.data.text])
    if ensemble.task == "generation":
        whole = Labelled.replies(texts, list(rows[ensemble.target]), name)
        return whole.first(ensemble.evaluation_rows)
    return Labelled(texts, list(rows[ensemble.label]), name)


def _rows(
    bundle: Bundle,
    manifest: Ensemble,
    recipe: Recipe | None,
    own: EnsembleRecipe | None,
    data: Path | None,
) -> tuple[Labelled, Labelled | None]:
    """The rows to judge by, and the rows that baselines may learn from."""
    cache = bundle.path / WORK / "cache"
    if data is not None:
        text = recipe.data.text if recipe else "text"
        answer = str(own.label or own.target) if own else ANSWER_COLUMN[manifest.task]
        rows = load_rows([data], [text, answer], cache)
        view = Labelled.replies if manifest.task == "generation" else Labelled
        judged = view(list(rows[text]), list(rows[answer]), data.name)
        if own is None or not own.baselines:
            return judged, None
    if recipe is None or own is None:
        raise RecipeError(
            f"{bundle.path} does not say which rows {manifest.id} was tested on; give --data FILE with the columns "
            f"text and {ANSWER_COLUMN[manifest.task]}"
        )
    splits = load_splits(recipe, cache)
    known = labelled(
        concatenate_datasets([splits.train, splits.validation]), "training", recipe, own
    )
    if data is not None:
        return judged, known
    if splits.test is None:
        return labelled(splits.validation, "validation", recipe, own), None
    return labelled(splits.test, "test", recipe, own), known
