"""The bodies of requests and answers, for validation and for the OpenAPI schema. Bodies refuse unknown fields."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, WithJsonSchema

from serve.manifest import Abstain, AdapterRef, EarlyExit, Method, Number, PredictMethod

_TEXT = {"type": "string", "minLength": 1}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_IMAGE = {
    "type": "object",
    "properties": {
        "image": {
            **_TEXT,
            "description": "A PNG, JPEG or WebP as a data URL, for a base that reads images.",
        },
        "text": {**_TEXT, "description": "For a base that writes: the text beside the image."},
    },
    "required": ["image"],
    "additionalProperties": False,
}
_ONE_INPUT = {
    "anyOf": [
        _TEXT,
        _IMAGE,
        {
            "type": "object",
            "properties": {"text": _TEXT, "text_pair": _TEXT},
            "required": ["text"],
            "additionalProperties": False,
        },
    ]
}

Inputs: TypeAlias = Annotated[
    Any, WithJsonSchema({"anyOf": [*_ONE_INPUT["anyOf"], {"type": "array", "items": _ONE_INPUT}]})
]
"""Checked by `predict.read_inputs`, whose errors are clearer than those of a union of types."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PredictFusion(Body):
    """The fusion of one request, instead of the ensemble's."""

    method: PredictMethod | None = None
    weights: dict[str, Annotated[Number, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Member -> weight, for weighted_average and vote."
    )
    top_k: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="For gate: how many members are asked about an input."
    )
    early_exit: EarlyExit | None = Field(
        None, description="Classification: ask members one after another until the answer is safe."
    )
    abstain: Abstain | None = Field(
        None, description="Classification: mark answers that are too uncertain."
    )


class PredictRequest(Body):
    """The body of `/v1/predict`."""

    model: StrictStr = Field(description="`name`, `name@version` or `name/member`.")
    input: Inputs = Field(
        description="A text, an object with a text or an image, or a list of these."
    )
    fusion: PredictFusion | None = None
    return_members: StrictBool = Field(False, description="Add what each member answered.")


class GenerateFusion(Body):
    """The field `fusion` of completions and chat completions."""

    method: Method | None = None
    weights: dict[str, Number] | None = Field(
        None,
        min_length=1,
        description="Member -> weight, for weighted_average, product, vote and mbr; of product it may be negative.",
    )
    prompts: dict[str, StrictStr] | None = Field(
        None,
        min_length=1,
        description="Member -> another prompt for it; in a chat, another last user message.",
    )
    plausibility: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        None, description="For `product`: the least share of the best member's top probability."
    )
    return_members: StrictBool = False


class GenerateRequest(BaseModel):
    """The fields of an OpenAI body that Choir reads. All others go to vLLM unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: StrictStr = Field(description="`name`, `name@version` or `name/member`.")
    stream: StrictBool | None = None
    fusion: GenerateFusion | None = None


class TokensRequest(BaseModel):
    """The field of a body of `/tokenize` or `/detokenize` that Choir reads. All others go to vLLM unchanged: `prompt`
    or `messages`, or `tokens`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: StrictStr = Field(description="`name`, `name@version` or `name/member`.")


class ClassifyRequest(BaseModel):
    """The fields of a body of `/classify` that Choir reads. Others of vLLM's are refused where they cannot be
    honoured."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: StrictStr = Field(description="`name`, `name@version` or `name/member`.")
    input: Inputs = Field(description="A text, an object with a text, or a list of either.")
    user: StrictStr | None = None


class EmbeddingsRequest(BaseModel):
    """The fields of a body of `/v1/embeddings` that Choir reads. Others of vLLM's are refused where they cannot be
    honoured."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: StrictStr = Field(description="`name` for the base, `name/member` for a member.")
    input: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    _TEXT,
                    {"type": "array", "items": _TEXT, "minItems": 1},
                    _TOKENS,
                    {"type": "array", "items": _TOKENS, "minItems": 1},
                ]
            }
        ),
    ] = Field(description="A text, the token ids of one, or a list of either.")
    encoding_format: Literal["float", "base64"] = "float"
    use_activation: StrictBool | None = Field(
        None, description="`false` leaves the vectors at their own length."
    )
    user: StrictStr | None = None


class LoadLoraRequest(BaseModel):
    """The body of vLLM's route that loads a LoRA. As there, unknown fields are ignored."""

    lora_name: StrictStr = Field(
        min_length=1,
        max_length=150,
        description="`ensemble/member`, an ensemble of one member, or a new name.",
    )
    lora_path: StrictStr = Field(
        min_length=1, max_length=4000, description="An absolute path, or a URI as in a swap."
    )
    load_inplace: StrictBool = Field(
        False, description="Whether it may replace an adapter that was loaded before."
    )
    is_3d_lora_weight: Literal[False] = Field(False, description="Such weights are not served.")


class UnloadLoraRequest(BaseModel):
    """The body of vLLM's route that unloads a LoRA."""

    lora_name: StrictStr = Field(min_length=1, max_length=150)
    lora_int_id: StrictInt | None = Field(None, description="Not used, as in vLLM.")


class RollbackRequest(Body):
    """The body of a rollback."""

    to: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="The version to go back to; by default the one that was active before."
    )


class Said(BaseModel):
    """The answer to one input. The ensemble's task decides which fields it has."""

    label: str | None = Field(None, description="Classification: the answered label.")
    labels: list[str] | None = Field(
        None, description="Multilabel: the labels at or over their thresholds; there may be none."
    )
    probabilities: dict[str, float] | None = Field(
        None,
        description="Every label. Classification: they sum to 1; multilabel: each is its own.",
    )
    value: float | None = Field(None, description="Regression: the value.")


class MemberAnswer(Said):
    """The answer of one member to one input, without the fusion's temperature."""

    name: str
    adapters: list[AdapterRef]


class PredictItem(Said):
    """The fused answer to one input."""

    index: int
    entropy: float | None = Field(None, description="Of the probabilities, in nats.")
    disagreement: float | None = Field(
        None,
        description="Mutual information of member and label, in nats; multilabel: summed over the labels.",
    )
    std: float | None = Field(
        None, description="Regression: the standard deviation of the members' values."
    )
    members_asked: int | None = Field(
        None, description="With `early_exit` or a gate: how many members were asked."
    )
    abstained: bool | None = Field(
        None, description="With `abstain`: whether the answer is too uncertain for the risk."
    )
    members: list[MemberAnswer] | None = Field(
        None, description="In the manifest's order; those that were asked."
    )


class PredictUsage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of the inputs, counted once.")
    member_tokens: int = Field(description="Tokens that all members together read.")
    computed_tokens: int = Field(
        description="Those of the members' tokens that the engine computed; the others were in its cache."
    )


class PredictAnswer(BaseModel):
    """The answer of `/v1/predict`, for the schema only: `predict.answer` writes the document, without an
    object for each row."""

    object: Literal["list"]
    model: str = Field(description="The resolved `name@version` or `name@version/member`.")
    data: list[PredictItem]
    usage: PredictUsage
    absent_members: list[str] | None = Field(
        None, description="Members that could not be loaded (`on_member_error`: `degrade`)."
    )


class ClassifyItem(BaseModel):
    """The answer to one input, as vLLM writes it."""

    index: int
    label: str
    probs: list[float] = Field(description="In the order of the ensemble's labels.")
    num_classes: int
    abstained: bool | None = Field(
        None, description="If the ensemble abstains: whether the answer is too uncertain."
    )


class InputUsage(BaseModel):
    """Tokens of the inputs, counted once, as vLLM writes them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class ClassifyAnswer(BaseModel):
    """The answer of `/classify`, with the fields of vLLM's."""

    id: str
    object: Literal["list"]
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The resolved `name@version` or `name@version/member`.")
    data: list[ClassifyItem]
    usage: InputUsage


class EmbeddingItem(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(
        description="The vector; with `base64` its numbers as float32, little-endian."
    )


class EmbeddingsAnswer(BaseModel):
    """The answer of `/v1/embeddings`."""

    id: str
    object: Literal["list"]
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The resolved `name@version` or `name@version/member`.")
    data: list[EmbeddingItem]
    usage: InputUsage


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error answer."""

    error: ErrorFields
