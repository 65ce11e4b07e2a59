"""The teacher of a distillation: a finished ensemble, one of its members, or another model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serve.base.side_files import read_tokenizer
from serve.bundle import BaseSpec, Bundle, BundleInfo
from serve.fusion.fuse import Fusion
from serve.fusion.fused import FusedValues
from serve.fusion.token_weights import token_method
from serve.manifest import Ensemble, FusionSpec, Member
from training.manifest import draft, whole_ensemble
from training.offline.members import OfflineMembers
from training.progress import Advance
from training.recipe import EnsembleRecipe, RecipeError, TeacherRecipe
from training.stages.distillation import TOP_TOKENS, TopTokens


class EnsembleTeacher:
    """A teacher that gives the fused probabilities or values of an ensemble, by the ensemble's own method.

    For an ensemble that votes, or chooses among whole answers, it gives the average: shares of votes say nothing about
    labels that no member chose."""

    def __init__(self, bundle: Bundle, ensemble: Ensemble) -> None:
        self.passes = len(ensemble.members)
        self._bundle = bundle
        self._ensemble = ensemble
        self._members = OfflineMembers(bundle, ensemble)

    def soft_answers(
        self, texts: Sequence[str], pairs: Sequence[str] | None, advance: Advance
    ) -> NDArray[np.float64]:
        """Return the label probabilities [texts, labels], or the values [texts, 1]. `pairs` are the second texts if
        rows are pairs."""
        said = self._members.outputs(texts, pairs, advance)
        fusion = Fusion.from_manifest(self._ensemble, self._bundle.fusion_path(self._ensemble))
        method = self._ensemble.fusion.method
        vectors = self._members.gate_vectors(fusion, texts, pairs)
        fused = fusion(said, method="average" if method == "vote" else method, vectors=vectors)
        return fused.values[:, None] if isinstance(fused, FusedValues) else fused.probabilities

    def answer_tokens(
        self,
        contexts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        advance: Advance,
    ) -> list[TopTokens]:
        """Return the most probable tokens at each place of the given answers."""
        method = token_method(self._ensemble) or "average"
        return self._members.answer_log_probs(contexts, answers, method, _top_tokens, advance)


def find_teacher(
    recipe: TeacherRecipe,
    own: EnsembleRecipe,
    labels: Sequence[str],
    bundle: Bundle,
) -> EnsembleTeacher:
    """Find the teacher of a student in the ensemble `own`. An ensemble that teaches must be in the bundle. Raises
    BundleError and RecipeError."""
    if recipe.path is not None:
        return EnsembleTeacher(*_other_model(recipe.path, own, labels, bundle))
    ensemble = whole_ensemble(bundle, str(recipe.taught_by))
    if recipe.member is not None:
        name = recipe.member.partition("/")[2]
        alone = [member for member in ensemble.members if member.name == name]
        fusion = FusionSpec(method="average")
        ensemble = ensemble.model_copy(update={"members": alone, "fusion": fusion})
    return EnsembleTeacher(bundle, ensemble)


def _other_model(
    path: Path, own: EnsembleRecipe, labels: Sequence[str], bundle: Bundle
) -> tuple[Bundle, Ensemble]:
    if not (path / "config.json").is_file():
        raise RecipeError(f"the teacher {path} is not a model: it has no config.json")
    if own.task == "generation":
        theirs, ours = (
            read_tokenizer(*source).get_vocab()
            for source in ((str(path), None), (bundle.base_source, bundle.base_revision))
        )
        if theirs != ours:
            raise RecipeError(
                f"the teacher {path} has another tokenizer than the base, so their tokens cannot be compared; distil "
                "generation from a model with the same tokenizer"
            )
    info = BundleInfo(format=1, base=BaseSpec(path=str(path), kind="causal"))
    return Bundle(path, info), draft(own, [Member(name="teacher", adapters=[])], labels)


def _top_tokens(log_probs: torch.Tensor) -> TopTokens:
    """Return the most probable tokens from log-probabilities [places, V]."""
    top = log_probs.topk(min(TOP_TOKENS, log_probs.shape[-1]), dim=-1)
    return TopTokens(top.indices.numpy(), top.values.numpy())
