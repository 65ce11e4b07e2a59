"""Soups: the average of the weights of members that started from one model (Wortsman et al. 2022).

A LoRA starts as no change of the base, so all LoRAs of a bundle start from one model, and the average of their weights
is that of their updates: PEFT's `cat` by equal weights, or its closest LoRA of the engine's rank.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from serve.bundle import BaseSpec, Bundle
from serve.fusion.fitting.options import FusionOptions
from serve.fusion.labels.rules import Loss
from serve.manifest import Ensemble, Member
from training.evaluation.evaluation import MAX_NEW_TOKENS, Evaluation, Labelled
from training.evaluation.metrics.text import text_metrics
from training.execution.run import recorded_recipe
from training.leaderboard.contender import FittingRows, FusionContender, loss_on
from training.leaderboard.criteria import judged_by
from training.leaderboard.labels import alone, draft
from training.leaderboard.outputs import MemberOutputs
from training.leaderboard.validation import validation_texts
from training.manifest import whole_ensemble
from training.merging.merge import Merged, add_rung, averaged, merged_adapter
from training.progress import Watch

Soup = Literal["uniform_soup", "greedy_soup"]
SOUPS: tuple[Soup, ...] = get_args(Soup)


def make_soup(
    bundle: Bundle, ensemble: str, soup: Soup, max_rank: int, watch: Watch
) -> Merged | None:
    """Make a soup of an ensemble's members and write it as a rung. The uniform one has all members. The greedy one
    starts with the best member and takes each next one that does not make it worse on the validation rows; None if that
    leaves the best member alone.

    Raises BundleError if the members are no LoRAs, and RecipeError if the validation rows cannot be read."""
    whole = whole_ensemble(bundle, ensemble)
    members: Sequence[Member] = whole.members
    if soup == "greedy_soup":
        members = _Kitchen(bundle, whole, max_rank, watch).greedy()
    if len(members) < 2:
        return None
    equal = [1 / len(members)] * len(members)
    with merged_adapter(bundle, members, equal, averaged(bundle, members, max_rank)) as folder:
        return add_rung(bundle, whole, folder, soup.replace("_", "-"), "soup", members)


class _Kitchen:
    """Tries soups on the validation rows."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble, max_rank: int, watch: Watch) -> None:
        self._bundle = bundle
        self._ensemble = ensemble
        self._max_rank = max_rank
        self._watch = watch
        self._rows = validation_texts(bundle, ensemble)

    def greedy(self) -> list[Member]:
        """Return the members of the greedy soup, the best first."""
        losses = {member.name: self._loss([member]) for member in self._ensemble.members}
        best, *others = sorted(self._ensemble.members, key=lambda member: losses[member.name])
        taken, loss = [best], losses[best.name]
        for member in others:
            tried = self._loss([*taken, member])
            if tried <= loss:
                taken, loss = [*taken, member], tried
        return taken

    def _loss(self, members: Sequence[Member]) -> Loss:
        """Return how wrong the average of the members' weights is on the validation rows."""
        with tempfile.TemporaryDirectory(prefix="choir-soup-") as scratch:
            base = BaseSpec(
                path=str(self._bundle.base_folder) if self._bundle.base_folder else None,
                id=None if self._bundle.base_folder else self._bundle.base_source,
                revision=self._bundle.base_revision,
                kind=self._bundle.base_kind(),
            )
            bundle = Bundle.create(Path(scratch) / "bundle", base)
            equal = [1 / len(members)] * len(members)
            how = averaged(self._bundle, members, self._max_rank)
            with merged_adapter(self._bundle, members, equal, how) as folder:
                member = Member(name="soup", adapters=[bundle.add_adapter("soup", folder)])
            tried = draft(self._ensemble, [member])
            limit = self._max_new_tokens()
            evaluation = Evaluation(bundle, tried, self._watch, max_new_tokens=limit)
            if tried.task == "generation":
                return _text_loss(evaluation, self._rows)
            return self._label_loss(evaluation, tried)

    def _label_loss(self, evaluation: Evaluation, tried: Ensemble) -> Loss:
        """Return the loss after the soup's own temperature or thresholds."""
        stored = self._bundle.validation_scores(tried.name).rows()
        options = stored.header.options if stored else FusionOptions()
        truth = self._rows.targets(tried)
        folds = stored.folds if stored else np.arange(len(truth)) % options.folds
        outputs = MemberOutputs()
        outputs.add(tried.members[0], evaluation.outputs(self._rows)[0])
        rows = FittingRows(outputs, truth, folds)
        everything = np.arange(len(truth))
        served = FusionContender("soup", "soup", tried, alone(options)).fit(rows, everything)
        return loss_on(served, rows, everything, options)

    def _max_new_tokens(self) -> int:
        recipe = recorded_recipe(self._bundle.path)
        own = recipe.find(self._ensemble.name) if recipe else None
        return own.max_new_tokens if own else MAX_NEW_TOKENS


def _text_loss(evaluation: Evaluation, rows: Labelled) -> Loss:
    (answers,) = evaluation.answers(rows)
    metric, second = judged_by("generation")
    metrics = text_metrics(answers, rows.references)
    whole = np.ones((1, len(answers)))
    return -float(metrics[metric](whole)[0]), -float(metrics[second](whole)[0])
