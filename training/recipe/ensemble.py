"""One ensemble: its task, its columns, its members and its fusion."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serve.manifest import Extract, Name
from training.recipe.fusion import GENERATION_METHODS, FusionRecipe
from training.recipe.member import CandidateRecipe, MemberRecipe, with_defaults
from training.recipe.values import Column, Strict


class EnsembleRecipe(Strict):
    """One ensemble: a task over one column, its members and its fusion."""

    name: Name
    task: Literal["classification", "generation"]
    template: str = "{text}"
    label: Column | None = None
    labels: list[str] | None = None
    """The order of the labels; default: all that occur in the training rows, sorted."""
    verbalizers: dict[str, str] = Field(default_factory=dict)
    label_scoring: Literal["sum", "mean"] = "sum"
    target: Column | None = None
    max_new_tokens: int = Field(64, ge=1)
    """Generation: longest answer in evaluation."""
    evaluation_rows: int = Field(200, ge=1)
    """Generation: answers are written for at most this many rows of a split."""
    extract: Extract | None = None
    defaults: dict[str, Any] = Field(default_factory=dict)
    """Keys of members and stages shared by all that have them; a member's own keys win."""
    members: list[MemberRecipe] = Field(min_length=1)
    candidates: list[CandidateRecipe] = Field(default_factory=list)
    fusion: FusionRecipe = FusionRecipe()
    baselines: list[Literal["tfidf_svc"]] = Field(default_factory=list)
    golden: int = Field(0, ge=0)
    """How many validation rows that the fusion answers rightly go into the manifest as golden examples."""
    on_member_error: Literal["fail", "degrade"] = "fail"

    @model_validator(mode="before")
    @classmethod
    def _apply_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("defaults"), dict):
            return data
        merged = dict(data)
        for key in ("members", "candidates"):
            if isinstance(data.get(key), list):
                merged[key] = [with_defaults(entry, data["defaults"]) for entry in data[key]]
        return merged

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.task == "classification":
            if self.label is None or self.target is not None:
                raise ValueError(
                    "a classification ensemble names its `label` column, and no `target`"
                )
            if self.fusion.method == "product":
                raise ValueError("product is for generation; for classification use `space: log`")
        if self.task == "generation":
            if self.target is None or self.label is not None:
                raise ValueError("a generation ensemble names its `target` column, and no `label`")
            if self.fusion.method not in ("best", *GENERATION_METHODS):
                raise ValueError(
                    f"generation is fused by {', '.join(GENERATION_METHODS)}, not by {self.fusion.method}"
                )
            if self.baselines:
                raise ValueError("baselines are for classification")
        if "{text}" not in self.template:
            raise ValueError("template must contain {text}")
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("members need different names")
        for candidate in self.candidates:
            if candidate.member not in names:
                raise ValueError(
                    f"candidate {candidate.name!r} names the unknown member {candidate.member!r}"
                )
        adapters = names + [candidate.name for candidate in self.candidates]
        if len(set(adapters)) != len(adapters):
            raise ValueError("candidates need names of their own, different from the members'")
        return self
