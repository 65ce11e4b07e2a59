"""The recipe's part on one member: its name, its bag and the stages that make its adapters."""

import difflib
from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from serve.manifest import Name
from training.recipe.search import SearchRecipe, Values, searchable, with_values
from training.recipe.stages import (
    STAGES,
    AdapterStage,
    AloraStage,
    AnyStage,
    DistillationStage,
    LoraStage,
    PTuningStage,
    StageRecipe,
)
from training.recipe.values import Column, Label, Strict

_OWN_DEFAULTS = ("seed", "bag", "rows", "search")
"""Keys of the member itself that may be among an ensemble's defaults."""
_OWN_KEYS = ("name", "member", "stages", *_OWN_DEFAULTS)
"""Keys of the member itself. All other keys of a member without `stages` belong to its only stage."""


def _cell(value: Any) -> Any:
    """Return a number or a date of the YAML file as the text that a cell has."""
    return str(value) if isinstance(value, int | float | date) else value


class RowsRecipe(Strict):
    """A part of the training rows, such as those of one team, one region or one month."""

    column: Column
    """Column of the training rows. It may be one that no ensemble reads."""
    values: list[Annotated[Label, BeforeValidator(_cell)]] = Field(min_length=1)
    """The rows with one of these values are the member's."""


class MemberRecipe(Strict):
    """One member. A member with one stage has the stage's keys beside its own; otherwise `stages` lists its stages."""

    name: Name
    """The member's name. Its adapter is called `ENSEMBLE-NAME` in the bundle, which has at most 63 characters."""
    seed: int = 0
    """Seed of the member's bag and training."""
    bag: Annotated[float, Field(gt=0, le=1)] | Literal["bootstrap"] = 1.0
    """Share of the training rows that are drawn without replacement; or `bootstrap`: as many draws as there are rows,
    with replacement."""
    rows: RowsRecipe | None = None
    """The part of the training rows that the member learns from, and its bag is drawn from; default: all of them."""
    search: SearchRecipe | None = None
    """Search for values of the stage's keys, for this member alone."""
    stages: list[AnyStage] = Field(min_length=1)
    """The stages in the order of training. A member with one stage can have the stage's keys beside its own instead."""

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
                f"{next(iter(stage))} belongs in one of the stages if a member has `stages`"
            )
        if isinstance(own["stages"], list):
            own["stages"] = [_with_kind(each) for each in own["stages"]]
        return own

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        kinds = [stage.kind for stage in self.adapters]
        loras = ("lora", "alora")
        if len(kinds) > 1 and (kinds[0] != "lora" or len(kinds) > 2 or kinds[1] in loras):
            raise ValueError(
                f"the stages {', '.join(kinds)} cannot be one member: it has one adapter, or a lora and then one of "
                "prefix, prompt and p_tuning"
            )
        for before, stage in pairwise([None, *self.stages]):
            if not isinstance(stage, DistillationStage):
                continue
            if before is None:
                raise ValueError(
                    "distillation continues the adapter of the stage before it, and here it is the first stage"
                )
            if isinstance(before, AloraStage):
                raise ValueError(
                    "distillation cannot continue an activated LoRA, whose prompt ends in its own invocation; use lora"
                )
            if isinstance(before, PTuningStage) or getattr(before, "projection", None):
                raise ValueError(
                    "distillation cannot continue virtual tokens that an MLP made, because the MLP is not kept; use "
                    "prompt, or a prefix without projection"
                )
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        if self.search is not None:
            searchable([*self.stages])
        return self

    def with_values(self, values: Values) -> Self:
        """Return the member with these values in its only stage. Raises ValueError if the stage cannot have them."""
        stage = with_values(searchable([*self.stages]), values)
        return self.model_copy(update={"stages": [stage]})

    @property
    def adapters(self) -> list[AdapterStage]:
        """The stages that make an adapter; each makes one."""
        return [stage for stage in self.stages if not isinstance(stage, DistillationStage)]

    def adapter_names(self, ensemble: str) -> list[str]:
        """Return the names of the member's adapters in the bundle, given the ensemble's name."""
        name = f"{ensemble}-{self.name}"
        # The second adapter's name ends in its kind.
        return [f"{name}-{stage.kind}" if n else name for n, stage in enumerate(self.adapters)]

    @property
    def alora(self) -> AloraStage | None:
        """The stage of an activated LoRA; None if the member has none."""
        return next((each for each in self.adapters if isinstance(each, AloraStage)), None)

    @property
    def soft(self) -> bool:
        """Whether one of the adapters puts virtual tokens before the prompt."""
        return not all(isinstance(stage, LoraStage) for stage in self.adapters)


class CandidateRecipe(MemberRecipe):
    """An adapter that may replace a member later. It is trained, but stays outside the ensemble."""

    member: Name
    """The member that it may replace."""

    def folder(self, ensemble: str) -> str:
        """Return the name of the candidate's folder in `BUNDLE/candidates/`, given the ensemble's name."""
        return f"{ensemble}-{self.name}"


def with_defaults(member: Any, defaults: Mapping[str, Any]) -> Any:
    """Add those of `defaults` to a member, as written in YAML, that its kind has and that it does not set itself.

    Raises ValueError if no kind has one of the defaults.
    """
    known = set(_OWN_DEFAULTS).union(*(stage.model_fields for stage in STAGES.values()))
    for key in defaults:
        if key not in known or key == "kind":
            close = difflib.get_close_matches(key, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ValueError(f"defaults has the unknown key {key!r}{hint}")
    if not isinstance(member, dict):
        return member
    own = {key: defaults[key] for key in _OWN_DEFAULTS if key in defaults}
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
