"""The ensemble manifest: its members, and how their outputs are fused."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole: TypeAlias = Annotated[int, Field(strict=True)]

Task: TypeAlias = Literal["classification", "multilabel", "regression", "generation"]
Method: TypeAlias = Literal[
    "average", "weighted_average", "vote", "stack", "gate", "product", "mbr"
]
Space: TypeAlias = Literal["probability", "log"]
StackModel: TypeAlias = Literal["logistic_regression", "linear_regression", "gradient_boosting"]
FittedModel: TypeAlias = StackModel | Literal["gate"]
"""What the file of fitted parameters holds."""
PredictMethod: TypeAlias = Literal["average", "weighted_average", "vote", "stack", "gate"]
"""The methods of the tasks that answer with labels or values."""
TokenMethod: TypeAlias = Literal["average", "weighted_average", "product"]
"""The methods of generation that fuse at every token."""
TextMethod: TypeAlias = Literal["vote", "mbr"]
"""The methods of generation that choose among the members' whole answers by the texts alone."""
TEXT_METHODS: tuple[TextMethod, ...] = get_args(TextMethod)
AnswerMethod: TypeAlias = TextMethod | Literal["stack"]
"""All methods of generation that choose among the members' whole answers."""
ANSWER_METHODS: tuple[AnswerMethod, ...] = (*TEXT_METHODS, "stack")

METHODS: dict[Task, tuple[Method, ...]] = {
    "classification": ("average", "weighted_average", "vote", "stack", "gate"),
    "multilabel": ("average", "weighted_average", "vote", "stack"),
    "regression": ("average", "weighted_average", "stack"),
    "generation": ("average", "weighted_average", "product", "vote", "mbr", "stack"),
}
PREFIX_METHODS: tuple[Method, ...] = ("average", "weighted_average", "vote")
"""The methods that can answer before every member was asked."""
LARGEST_FACTOR = 1e30
"""The largest weight of `product`. Beyond it, log-probabilities times weights overflow float32."""
LABELLED: tuple[Task, ...] = ("classification", "multilabel")
STACK_MODELS: dict[Task, tuple[StackModel, ...]] = {
    "classification": ("logistic_regression", "gradient_boosting"),
    "multilabel": ("logistic_regression", "gradient_boosting"),
    "regression": ("linear_regression", "gradient_boosting"),
    "generation": ("linear_regression",),
}


class Contract(BaseModel):
    """A model that is written to disk. It refuses unknown fields and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterRef(Contract):
    """An adapter by its name and the digest of its folder."""

    adapter: Name
    digest: Digest


class Member(Contract):
    """One member: the base with no adapter, with one, or with two (a LoRA, and a prefix or prompt adapter)."""

    name: Name
    weight: Number | None = None
    adapters: Annotated[list[AdapterRef], Field(max_length=2)]

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if len({ref.digest for ref in self.adapters}) < len(self.adapters):
            raise ValueError(f"the member {self.name!r} names the same adapter twice")
        return self


class Extract(Contract):
    """A part of a text, such as what is compared of a generated answer: a group of the first match of a regular
    expression (Python's `re`)."""

    regex: Annotated[str, Field(min_length=1)]
    """The regular expression."""
    group: Whole | str = 0
    """The group, by number or name; 0 is the whole match."""

    @model_validator(mode="after")
    def _check_group(self) -> Self:
        try:
            pattern = re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.regex!r} is not a regular expression: {error}") from error
        known = (*range(pattern.groups + 1), *pattern.groupindex)
        if self.group not in known:
            raise ValueError(f"{self.regex!r} has no group {self.group!r}; it has {_listed(known)}")
        return self


Share: TypeAlias = Annotated[Number, Field(ge=0, le=1)]


class EarlyExit(Contract):
    """Members are asked in order of strength until their answer is safe."""

    risk: Share
    """How many of the answers may differ from what all members would answer."""


class Abstain(Contract):
    """Answers that are too uncertain are marked as such."""

    risk: Share
    """How many of the answers that are not marked may be wrong."""
    confidence: Share = 0.95
    """How sure it is that the risk is kept."""


class FusionSpec(Contract):
    """How the members' outputs are fused. A fitted stacker or gate (`model` and `parameters`) may stand beside any
    method, so that a request can choose it."""

    method: Method
    space: Space = "probability"
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    model: FittedModel | None = None
    parameters: str | None = None
    plausibility: Share = 0.0
    extract: Extract | None = None
    top_k: Annotated[Whole, Field(ge=1)] | None = None
    early_exit: EarlyExit | None = None
    abstain: Abstain | None = None

    @field_validator("parameters")
    @classmethod
    def _check_path(cls, path: str | None) -> str | None:
        if path is not None and ("\\" in path or {"", ".", ".."} & set(path.split("/"))):
            raise ValueError(f"{path!r} must be a relative path below the bundle, without '..'")
        return path

    @model_validator(mode="after")
    def _check_fields_of_method(self) -> Self:
        if (self.model is None) != (self.parameters is None):
            raise ValueError("'model' and 'parameters' of a stacker go together: give both or none")
        if self.method in ("stack", "gate") and self.parameters is None:
            raise ValueError(f"the method {self.method!r} needs 'model' and 'parameters'")
        if self.method in ("stack", "gate") and (self.method == "gate") != (self.model == "gate"):
            raise ValueError(f"the method {self.method!r} is not for the model {self.model!r}")
        if self.top_k is not None and self.model != "gate":
            raise ValueError("'top_k' is for a gate, which says whom to ask")
        if self.space == "log" and self.method not in ("average", "weighted_average"):
            raise ValueError(
                f"'space': 'log' is for average and weighted_average, not for {self.method!r}"
            )
        if self.temperature != 1 and self.method == "vote":
            raise ValueError(
                "'temperature' is not for 'vote', whose probabilities are shares of votes"
            )
        if self.plausibility and self.method != "product":
            raise ValueError(f"'plausibility' is for product, not for {self.method!r}")
        if self.extract and self.method not in TEXT_METHODS:
            raise ValueError(f"'extract' is for vote and mbr, not for {self.method!r}")
        if self.early_exit and self.method not in PREFIX_METHODS:
            raise ValueError(
                f"'early_exit' is for {_listed(PREFIX_METHODS)}, not for {self.method!r}, which needs every member"
            )
        return self


class Golden(Contract):
    """An input whose answer is known, to check an ensemble with. The task decides which fields the answer has."""

    input: str | dict[Literal["text", "text_pair", "image"], str]
    label: str | None = None
    """Classification."""
    labels: list[str] | None = None
    """Multilabel: all labels of the answer; there may be none."""
    value: Number | None = None
    """Regression."""
    tolerance: Annotated[Number, Field(gt=0)] | None = None
    """Regression: how far the answer may be from the value."""
    text: str | None = None
    """Generation: the greedy answer to the filled template, without surrounding space."""
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    """Generation: the limit for the answer. `text` is its beginning if the whole is longer."""

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, given: Any) -> Any:
        texts = {"text": given} if isinstance(given, str) else given
        kinds = ({"text"}, {"text", "text_pair"}, {"image"}, {"image", "text"})
        sound = isinstance(texts, dict) and texts.keys() in kinds
        if not sound or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(
                "the input must be a text, or an object with 'text' (and 'text_pair') or 'image' (and 'text')"
            )
        if texts.get("image", "data:").strip()[:5].lower() != "data:":
            raise ValueError("the image must be a data URL")
        return given


GOLDEN_ANSWERS: dict[Task, tuple[str, ...]] = {
    "classification": ("label",),
    "multilabel": ("labels",),
    "regression": ("value", "tolerance"),
    "generation": ("text",),
}
"""The fields that a golden input of each task needs beside its input."""
GOLDEN_TOKENS = 64
"""`max_tokens` of a golden input that gives none."""


class Ensemble(Contract):
    """One immutable version of an ensemble: members, fusion, task and labels. In a bundle,
    `ensembles/<name>/<version>.json`."""

    format: Literal[1]
    name: Name
    version: Annotated[Whole, Field(ge=1)]
    task: Task
    members: Annotated[list[Member], Field(min_length=1)]
    fusion: FusionSpec
    labels: list[Annotated[str, Field(min_length=1)]] | None = None
    template: str = "{text}"
    verbalizers: dict[str, Annotated[str, Field(min_length=1)]] = {}
    label_scoring: Literal["sum", "mean"] = "sum"
    prompts: list[str] = []
    thresholds: dict[str, Share] = {}
    on_member_error: Literal["fail", "degrade"] = "fail"
    golden: list[Golden] = []
    scores: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def digests(self) -> tuple[str, ...]:
        """The distinct digests of all members' adapters, in order."""
        return tuple(
            dict.fromkeys(ref.digest for member in self.members for ref in member.adapters)
        )

    @property
    def head_rows(self) -> int | None:
        """Rows of each member's head: one a label, 1 for a value, 0 where prompts stand for heads; None for text."""
        if self.task == "regression":
            return 1
        rows = 0 if self.prompts else len(self.labels or [])
        return None if self.labels is None else rows

    def weights(self) -> list[float]:
        """Returns the members' weights, 1/n where none is given, scaled to sum to 1; `product` uses them as given."""
        n = len(self.members)
        weights = [1 / n if m.weight is None else m.weight for m in self.members]
        if self.fusion.method == "product":
            return weights
        try:
            total = math.fsum(weights)
        except OverflowError:  # in parts of the largest, they add up to a number
            weights = [weight / max(weights) for weight in weights]
            total = math.fsum(weights)
        return [weight / total for weight in weights]

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        _refuse_twice("member", [member.name for member in self.members])
        if all(member.weight == 0 for member in self.members):
            raise ValueError("all weights are 0; give at least one member another one")
        if self.fusion.method != "product":
            negative = [m.name for m in self.members if m.weight is not None and m.weight < 0]
            if negative:
                raise ValueError(
                    f"the weight of {negative[0]!r} is negative; only product allows that"
                )
        else:
            large = [m.name for m in self.members if abs(m.weight or 0) > LARGEST_FACTOR]
            if large:
                raise ValueError(
                    f"the weight of {large[0]!r} is too large for product, whose weights lie between "
                    f"-{LARGEST_FACTOR:g} and {LARGEST_FACTOR:g}"
                )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.fusion.method not in METHODS[self.task]:
            raise ValueError(
                f"the fusion method {self.fusion.method!r} is not for {self.task}; "
                f"choose one of {_listed(METHODS[self.task])}"
            )
        if self.fusion.temperature != 1 and self.task != "classification":
            raise ValueError(f"'temperature' is for classification, not for {self.task}")
        for field in ("early_exit", "abstain"):
            if getattr(self.fusion, field) and self.task != "classification":
                raise ValueError(f"{field!r} is for classification, not for {self.task}")
        if self.fusion.extract and self.task != "generation":
            raise ValueError(f"'extract' is for generation, not for {self.task}")
        if self.fusion.space == "log" and self.task == "generation":
            raise ValueError("'space': 'log' is not for generation; its method 'product' does that")
        if self.fusion.space == "log" and self.task == "regression":
            raise ValueError(
                "'space': 'log' is for probabilities, not for the values of regression"
            )
        models = [*STACK_MODELS[self.task], *(["gate"] if self.task == "classification" else [])]
        if self.fusion.model is not None and self.fusion.model not in models:
            raise ValueError(
                f"the stacker {self.fusion.model!r} is not for {self.task}; "
                f"choose one of {_listed(models)}"
            )
        return self

    @model_validator(mode="after")
    def _check_golden(self) -> Self:
        needed = GOLDEN_ANSWERS[self.task]
        allowed = {"input", *needed, *(["max_tokens"] if self.task == "generation" else [])}
        for number, golden in enumerate(self.golden):
            given = {field for field, value in golden if value is not None}
            missing = [field for field in needed if field not in given]
            if missing:
                raise ValueError(f"golden.{number} needs {missing[0]!r} for the task {self.task}")
            if strange := sorted(given - allowed):
                raise ValueError(f"golden.{number}: {strange[0]!r} is not for {self.task}")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.task not in LABELLED:
            for field in ("labels", "verbalizers"):
                if getattr(self, field):
                    raise ValueError(f"{field!r} is for {_listed(LABELLED)}, not for {self.task}")
            return self
        least = 2 if self.task == "classification" else 1
        if self.labels is None or len(self.labels) < least:
            raise ValueError(f"the task {self.task} needs 'labels', at least {least}")
        _refuse_twice("label", self.labels)
        known = set(self.labels)
        _refuse_unknown("verbalizers", self.verbalizers, known)
        for golden in self.golden:
            named = golden.labels or [] if golden.label is None else [golden.label]
            _refuse_unknown("golden", named, known)
        _refuse_unknown("thresholds", self.thresholds, known)
        return self

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if "{text}" not in self.template and "{image}" not in self.template:
            raise ValueError("'template' must contain {text} or {image}, where the input goes")
        lacking = [prompt for prompt in self.prompts if "{label}" not in prompt]
        if lacking or (self.prompts and self.task != "classification"):
            raise ValueError("'prompts' are texts with {label} in them, and for classification")
        if self.thresholds and self.task != "multilabel":
            raise ValueError(f"'thresholds' is for multilabel, not for {self.task}")
        return self


def adapter_name(member: str, place: int) -> str:
    """Returns the name for a member's adapter that was given none: the member's, and a number for the second one."""
    return member if place == 0 else f"{member[:60]}-{place + 1}"


def explain(error: ValidationError) -> str:
    """Returns a validation error as one sentence: the field, what is wrong with it, and how many more there are."""
    first, *more = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    what = {
        "extra_forbidden": "this field is not known; remove it or check its spelling",
        "missing": "this field is required",
        "model_type": "this field takes an object with fields of its own",
    }.get(first["type"], what)
    rest = f" (and {len(more)} more)" if more else ""
    return f"{where}: {what}{rest}" if where else f"{what}{rest}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _refuse_twice(what: str, values: list[str]) -> None:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"the {what} {min(twice)!r} is given twice")


def _refuse_unknown(field: str, labels: Iterable[str], known: set[str]) -> None:
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ValueError(f"{field!r} names {unknown[0]!r}, which is not one of the labels")
