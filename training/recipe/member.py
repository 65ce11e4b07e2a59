"""A member: its name, its rows and the stages that make its adapters."""

import difflib
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serve.manifest import Name
from training.recipe.search import SearchRecipe, Values, searchable, with_values
from training.recipe.stages import (
    STAGES,
    AdapterStage,
    AnyStage,
    DistillationStage,
    LoraStage,
    PTuningStage,
    StageRecipe,
)
from training.recipe.values import Strict

_OWN_KEYS = ("name", "member", "seed", "bag", "search", "stages")
"""Keys of a member itself; all others belong to its only stage."""


class MemberRecipe(Strict):
    """One member. A member of one stage has the stage's keys beside its own; several stages stand in `stages`."""

    name: Name
    """The member's name. `ENSEMBLE-NAME` names its adapter in the bundle and has at most 63 characters."""
    seed: int = 0
    """Seed of its bag and its training."""
    bag: Annotated[float, Field(gt=0, le=1)] | Literal["bootstrap"] = 1.0
    """Share of the training rows drawn without replacement, or `bootstrap`: as many as there are, with replacement."""
    search: SearchRecipe | None = None
    """Search values of the stage's keys for this member alone."""
    stages: list[AnyStage] = Field(min_length=1)
    """What is trained, one after the other. A member of one stage has the stage's keys beside its own instead."""

    @model_validator(mode="before")
    @classmethod
    def _only_stage(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        own = {key: value for key, value in data.items() if key in _OWN_KEYS}
        stage = {key: value for key, value in data.items() if key not in _OWN_KEYS}
        if "stages" not in own:
            return {**own, "stages": [_with_kind(stage)]}
        if stage:
            raise ValueError(
                f"{next(iter(stage))} belongs into one of the stages, where a member has `stages`"
            )
        if isinstance(own["stages"], list):
            own["stages"] = [_with_kind(each) for each in own["stages"]]
        return own

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        kinds = [stage.kind for stage in self.adapters]
        if len(kinds) > 1 and (kinds[0] != "lora" or len(kinds) > 2 or kinds[1] == "lora"):
            raise ValueError(
                f"the stages {', '.join(kinds)} cannot be one member: it has one adapter, or a lora and then one of "
                "prefix, prompt and p_tuning on top of it"
            )
        for before, stage in pairwise([None, *self.stages]):
            if not isinstance(stage, DistillationStage):
                continue
            if before is None:
                raise ValueError(
                    "distillation goes on with the adapter of the stage before it, and is the first here"
                )
            if isinstance(before, PTuningStage) or getattr(before, "projection", None):
                raise ValueError(
                    "distillation cannot go on with virtual tokens that an MLP made: the MLP is not kept; use prompt, "
                    "or a prefix without projection"
                )
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.search is not None:
            searchable([*self.stages])
        return self

    def with_values(self, values: Values) -> Self:
        """The member with what was found for its only stage. Raises ValueError."""
        stage = with_values(searchable([*self.stages]), values)
        return self.model_copy(update={"stages": [stage]})

    @property
    def adapters(self) -> list[AdapterStage]:
        """The stages that make an adapter, one each."""
        return [stage for stage in self.stages if not isinstance(stage, DistillationStage)]

    def adapter_names(self, ensemble: str) -> list[str]:
        """What its adapters are called in the bundle, where the member is one of `ensemble`."""
        name = f"{ensemble}-{self.name}"
        # The second one is named after what it is.
        return [f"{name}-{stage.kind}" if n else name for n, stage in enumerate(self.adapters)]

    @property
    def soft(self) -> bool:
        """Whether an adapter puts virtual tokens before the prompt."""
        return not all(isinstance(stage, LoraStage) for stage in self.adapters)


class CandidateRecipe(MemberRecipe):
    """An adapter that could replace a member later; it is trained, but stays outside the ensemble."""

    member: Name
    """The member that it could replace."""

    def folder(self, ensemble: str) -> str:
        """Its folder's name below the bundle's candidates."""
        return f"{ensemble}-{self.name}"


def with_defaults(member: Any, defaults: Mapping[str, Any]) -> Any:
    """`member` as its author wrote it, with each of `defaults` that its kind has and it does not say itself.

    Raises ValueError for a default that no kind has.
    """
    known = {"seed", "bag", "search"}.union(*(stage.model_fields for stage in STAGES.values()))
    for key in defaults:
        if key not in known or key == "kind":
            close = difflib.get_close_matches(key, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ValueError(f"defaults has the unknown key {key!r}{hint}")
    if not isinstance(member, dict):
        return member
    own = {key: defaults[key] for key in ("seed", "bag", "search") if key in defaults}
    if isinstance(stages := member.get("stages"), list):
        return {**own, **member, "stages": [_stage_with(each, defaults) for each in stages]}
    return {**own, **_stage_with(member, defaults)}


def _stage_with(stage: Any, defaults: Mapping[str, Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    fields = STAGES.get(stage.get("kind", "lora"), StageRecipe).model_fields
    return {**{key: value for key, value in defaults.items() if key in fields}, **stage}


def _with_kind(stage: Any) -> Any:
    return {"kind": "lora", **stage} if isinstance(stage, dict) else stage
