"""The fusion of generation: what the members write to the validation rows, and a ranker if the recipe asks for one."""

from collections.abc import Sequence

from serve.bundle import Bundle
from serve.fusion.answers import MEMBER_SCORES
from serve.manifest import Ensemble, Method
from training.evaluation.evaluation import (
    Evaluation,
    Labelled,
    answer_scores,
    generation_report,
    method_texts,
)
from training.evaluation.golden_inputs import golden_texts
from training.evaluation.scores import EvaluationReport
from training.evaluation.texts.ranking import (
    cross_ranked,
    fit_ranker,
    ranked_by,
    ranked_texts,
    wants_ranker,
)
from training.recipe import EnsembleRecipe


def written_fusion(
    recipe: EnsembleRecipe, draft: Ensemble, bundle: Bundle, evaluation: Evaluation, rows: Labelled
) -> tuple[Ensemble, EvaluationReport]:
    """Return a generation ensemble with its golden inputs, and its evaluation. If the recipe asks for a ranker, it is
    fitted and written."""
    answers = evaluation.answers(rows)
    fused: dict[str, Sequence[str]] = {**evaluation.fused(rows)}
    given = dict(fused)  # what engines answer; the report has cross-fitted answers of a ranker
    draft = draft.model_copy(
        update={"scores": {MEMBER_SCORES: answer_scores(draft, rows, answers)}}
    )
    if wants_ranker(recipe.fusion.options):
        candidates = evaluation.candidates(rows)
        ranker = fit_ranker(draft, candidates, rows.references)
        asked = recipe.fusion.options.method
        own: Method = "stack" if asked == "stack" else draft.fusion.method
        spec = ranked_by(draft, own, f"fusion/{draft.name}/{draft.version}")
        draft = draft.model_copy(update={"fusion": spec})
        ranker.write(bundle.path / str(spec.parameters))
        fused["stack"] = cross_ranked(draft, candidates, rows.references)
        given["stack"] = ranked_texts(draft, ranker, candidates)
    method = draft.fusion.method
    served = given.get(method) or method_texts(draft, answers, fused, recipe.extract)[method]
    golden = golden_texts(rows, served, recipe.max_new_tokens)[: recipe.golden]
    ensemble = draft.model_copy(update={"golden": golden})
    return ensemble, generation_report(ensemble, rows, answers, fused, recipe.extract)
