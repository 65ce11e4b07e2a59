"""The stages that all members share: they make the base, before the members fork."""

from string import Formatter
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from serve.base.folder import BaseKind
from serve.manifest import Name
from training.recipe.stages import StageRecipe

Objective = Literal["autoregressive", "masked", "masked_next_sentence"]
"""The next token (GPT), masked tokens (RoBERTa), or these and whether two sentences follow each other (BERT)."""


def default_objective(kind: BaseKind) -> Objective:
    return "autoregressive" if kind == "causal" else "masked"


def fields_of(template: str) -> list[str]:
    """The columns that a document's template names; ValueError for one that is no template."""
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
"""Templates over the data's columns; each row gives one document a template."""


class PretrainingStage(StageRecipe):
    """Continued pretraining of the whole base on documents."""

    kind: Literal["pretraining"] = "pretraining"
    """The kind of stage."""
    learning_rate: float = Field(2e-4, gt=0)
    objective: Objective | None = None
    """Default: `autoregressive` for a causal base, `masked` for an encoder."""
    documents: Documents = Field(["{text}"])
    """Templates over the data's columns: each row gives one document for each template."""


class FineTuningStage(StageRecipe):
    """Fine-tuning of the base's own weights on the ensembles' tasks."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    """The kind of stage."""
    learning_rate: float = Field(2e-4, gt=0)
    ensembles: list[Name] | None = Field(None, min_length=1)
    """Whose rows it is tuned on; default: those of all ensembles."""
    layers: int | None = Field(None, ge=1)
    """Tune the first so many layers alone; default: everything, embeddings too."""
    soup: int = Field(1, ge=1)
    """Tune so many times from the same base, with other seeds, and average the weights (the uniform soup of Wortsman et
    al. 2022)."""


BaseStage: TypeAlias = Annotated[PretrainingStage | FineTuningStage, Field(discriminator="kind")]

BASE_STAGES: dict[str, type[StageRecipe]] = {
    "pretraining": PretrainingStage,
    "fine_tuning": FineTuningStage,
}
