"""The recipe's part on the base's stages, which train the base before the members are trained on it."""

from string import Formatter
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from serve.base.folder import BaseKind
from serve.manifest import Name
from training.recipe.stages import StageRecipe

Objective = Literal["autoregressive", "masked", "masked_next_sentence"]
"""What pretraining predicts: the next token (GPT), masked tokens (RoBERTa), or masked tokens and whether a sentence
follows another (BERT)."""


def default_objective(kind: BaseKind) -> Objective:
    """Return the objective of a base for which the recipe names none."""
    return "autoregressive" if kind == "causal" else "masked"


def fields_of(template: str) -> list[str]:
    """Return the columns that a document's template names. Raises ValueError if it is not a template."""
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def _check_documents(documents: list[str]) -> list[str]:
    for template in documents:
        try:
            fields = fields_of(template)
        except ValueError:
            fields = []
        if not fields or not all(field.isidentifier() for field in fields):
            raise ValueError(
                f"the document {template!r} must name columns in braces, as in {{text}}"
            )
    return documents


Documents = Annotated[list[str], Field(min_length=1), AfterValidator(_check_documents)]
"""Templates with the data's columns in braces. Each row gives one document for each template."""


class PretrainingStage(StageRecipe):
    """Pretraining of the whole base, continued on documents."""

    kind: Literal["pretraining"] = "pretraining"
    """The kind of stage."""
    learning_rate: float = Field(2e-4, gt=0)
    objective: Objective | None = None
    """Default: `autoregressive` for a causal base, `masked` for an encoder. A CLIP or SigLIP has none: it learns which
    document is the caption of which image."""
    documents: Documents = Field(["{text}"])
    """Templates with the data's columns in braces. Each row gives one document for each template."""


class FineTuningStage(StageRecipe):
    """Fine-tuning of the base's weights on the ensembles' tasks."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    """The kind of stage."""
    learning_rate: float = Field(2e-4, gt=0)
    ensembles: list[Name] | None = Field(None, min_length=1)
    """The ensembles on whose tasks the base is tuned; default: all."""
    layers: int | None = Field(None, ge=1)
    """Tune only this many layers, from the first; default: all weights, with the embeddings."""
    soup: int = Field(1, ge=1)
    """Tune this many times from the same base, each time with another seed, and average the weights (the uniform soup
    of Wortsman et al. 2022)."""


BaseStage: TypeAlias = Annotated[PretrainingStage | FineTuningStage, Field(discriminator="kind")]

BASE_STAGES: dict[str, type[StageRecipe]] = {
    "pretraining": PretrainingStage,
    "fine_tuning": FineTuningStage,
}
