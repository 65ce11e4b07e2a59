"""Which OpenAI calls an ensemble refuses, and how a call wants its members to be fused."""

import re
from typing import Any

from serve.engine.interface import TOKEN_ROUTES, GenerateCall
from serve.engine.lockstep.sibling_spec import PREFIX, TokenFusion
from serve.errors import Refusal
from serve.fusion.answers import answer_method
from serve.fusion.errors import FusionError
from serve.fusion.members import check_weights
from serve.fusion.token_weights import token_method, token_plausibility, token_weights
from serve.manifest import METHODS, AnswerMethod, Ensemble, Method

_OWNED = {
    "prompt_embeds": "vectors come from verified adapters only; send text or token ids",
    "kv_transfer_params": "keys and values come from verified adapters only",
    "ec_transfer_params": "no encoder's outputs are transferred",
    "mm_processor_kwargs": "images are read as the base's own processor says",
    "media_io_kwargs": "images are read as the base's own processor says",
}
"""Parameters that vLLM accepts from clients and Choir refuses, with the reason."""

_NOT_KEPT = {
    "background": "a response ends with its request",
    "previous_response_id": "Choir keeps no responses; send the whole conversation in 'input'",
}
"""Parameters of /v1/responses that need a memory in the engine, with the reason."""

_WHERE = "in the file of --config, or as JSON in CHOIR_CHAT"
_SAID = {
    "--tool-call-parser": (
        "This server reads no tool calls. Its setting chat says how the base writes them: chat: "
        "{enable_auto_tool_choice: true, tool_call_parser: NAME}, such as hermes, "
        f"{_WHERE}. Without it, leave 'tools' out or send 'tool_choice': 'none'."
    ),
    "--reasoning-config": (
        "'thinking_token_budget' is not honoured: the engine does not know where thinking ends. Leave it out."
    ),
    "--trust-request-chat-template": (
        "A request brings no template of its own: leave 'chat_template' out. The server has one by its setting chat: "
        f"chat: {{chat_template: FILE}}, {_WHERE}."
    ),
    "is not a multimodal model": "This base reads no images: leave them out.",
}
"""A part of vLLM's refusals, such as a flag that `choir serve` does not have -> the refusal in Choir's words."""

_VALIDATION = re.compile(
    r"\d+ validation errors?:\n +\{.*?'loc': '(?:body\.)?([^']*)', 'msg': (?:'([^']*)'|\"([^\"]*)\")"
)
"""How vLLM lists what is wrong with the fields of a body; the first one is named."""

_NOT_FUSED = ("use_beam_search",)
_NOT_WHOLE = (*_NOT_FUSED, "prompt_logprobs", "n", "logprobs", "top_logprobs")


def generation_refusal(
    ensemble: Ensemble, call: GenerateCall, *, ranked: bool = False
) -> Refusal | None:
    """Returns why the ensemble cannot answer an OpenAI call; None if it can. `ranked`: whether it has a ranker of
    answers."""
    names = [member.name for member in ensemble.members]
    extra = call.body.get("vllm_xargs")
    for key in extra if isinstance(extra, dict) else ():
        if key.startswith(PREFIX):  # a client must not speak to Choir's scheduler
            return Refusal(400, f"{key!r} is reserved for Choir.", param="vllm_xargs")
    for name, why in _OWNED.items():
        if call.body.get(name) is not None:
            return Refusal(400, f"{name!r} is not accepted: {why}.", param=name)
    for name, why in _NOT_KEPT.items():
        if call.route == "responses" and call.body.get(name):
            return Refusal(400, f"{name!r} is not accepted: {why}.", param=name)
    for name in ("messages", "input"):
        if _holds_vectors(call.body.get(name)):
            return Refusal(
                400,
                f"Embeddings in {name!r} are not accepted: send the content itself.",
                param=name,
            )
        if _names_content(call.body.get(name)):
            return Refusal(
                400,
                f"'uuid' in {name!r} is not accepted: what stands for a content follows from the content itself; leave "
                "it out.",
                param=name,
            )
        if _asks_for_detail(call.body.get(name)):
            return Refusal(
                400,
                f"The 'detail' of an image in {name!r} can only be 'auto': images are read as the base's own processor "
                "says; leave it out.",
                param=name,
            )
    if call.route in TOKEN_ROUTES:
        return None
    unknown = [name for name in call.prompts or () if name not in names]
    if unknown:
        return Refusal(
            400,
            f"There is no member {unknown[0]!r}; members are {', '.join(names)}.",
            param="fusion.prompts",
        )
    if call.member is not None:
        return None
    if ensemble.task != "generation":
        return Refusal(
            400,
            f"The ensemble {ensemble.name!r} has the task {ensemble.task}: use /v1/predict, or one member alone as "
            f"'{ensemble.name}/{names[0]}'.",
            param="model",
        )
    try:
        method = token_method(ensemble, call.method)
    except FusionError as error:
        return Refusal(400, str(error), param="fusion.method")
    stacks = (call.method or ensemble.fusion.method) == "stack"
    if stacks and not ranked:
        return Refusal(
            400,
            f"{ensemble.id} has no stacker that was fitted on its adapters; possible: {', '.join(_unranked())}.",
            param="fusion.method",
        )
    try:
        if method is not None:
            token_weights(ensemble, method, call.weights)
        elif stacks and call.weights is not None:
            raise FusionError("'weights' is not for stack, whose ranker has its own.")
        elif call.weights is not None:
            check_weights(call.weights, names)
    except FusionError as error:
        return Refusal(400, str(error), param="fusion.weights")
    try:
        chosen = method or answer_method(ensemble, call.method)
        token_plausibility(ensemble, chosen, call.plausibility)
    except FusionError as error:
        return Refusal(400, str(error), param="fusion.plausibility")
    if len(names) == 1:
        return None
    return _refused_parameter(call, names[0], whole=method is None)


def in_choirs_words(message: str) -> str:
    """Returns a refusal of vLLM's as it is, or in a sentence of ours where users could not act on it."""
    if listed := _VALIDATION.match(message):
        field, what = listed[1], (listed[2] or listed[3] or "").removeprefix("Value error, ")
        return f"{field!r}: {what.rstrip('.')}."
    return next((own for part, own in _SAID.items() if part in message), message)


def _unranked() -> list[Method]:
    """Returns the methods of generation that need nothing fitted."""
    return [method for method in METHODS["generation"] if method != "stack"]


def _holds_vectors(messages: Any) -> bool:
    """Returns whether a chat has content of a type such as `prompt_embeds` or `image_embeds`."""
    return any(str(part.get("type")).endswith("_embeds") for part in _parts(messages))


def _names_content(messages: Any) -> bool:
    """Returns whether a chat names a content by itself, so that vLLM would find another one under that name."""
    return any(part.get("uuid") is not None for part in _parts(messages))


def _asks_for_detail(messages: Any) -> bool:
    """Returns whether a chat wants an image to be read coarsely or finely, which vLLM ignores."""
    images = (each for part in _parts(messages) for each in (part, part.get("image_url")))
    return any(
        isinstance(each, dict) and each.get("detail") not in (None, "auto") for each in images
    )


def _parts(messages: Any) -> list[dict[str, Any]]:
    """Returns the messages, and the parts of their contents."""
    given = _dicts(messages)
    return [*given, *(part for each in given for part in _dicts(each.get("content")))]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def call_fusion(ensemble: Ensemble, call: GenerateCall) -> TokenFusion | AnswerMethod:
    """Returns how the members are fused at every token, or how one of their whole answers is chosen.

    Raises FusionError if the call's method, weights or plausibility cannot be used."""
    method = token_method(ensemble, call.method)
    if method is None:
        return answer_method(ensemble, call.method)
    return TokenFusion(
        method=method,
        weights=token_weights(ensemble, method, call.weights),
        plausibility=token_plausibility(ensemble, method, call.plausibility),
    )


def _refused_parameter(call: GenerateCall, member: str, *, whole: bool) -> Refusal | None:
    """Returns the refusal of the first parameter that several members cannot honour together; None if there is none."""
    how = "write whole answers, of which one is chosen" if whole else "are fused at every token"
    alone = f"ask one member alone as '{call.version.partition('@')[0]}/{member}'"
    for parameter in _NOT_WHOLE if whole else _NOT_FUSED:
        value = call.body.get(parameter)
        if value not in (None, False, 0) and (parameter != "n" or value != 1):
            return Refusal(
                400,
                f"{parameter!r} cannot be honoured when members {how}; {alone}.",
                param=parameter,
            )
    if call.body.get("best_of") not in (None, 1):
        return Refusal(
            400, f"'best_of' cannot be honoured when members {how}; use 'n'.", param="best_of"
        )
    if whole and call.body.get("echo") and call.body.get("logprobs") is not None:
        return Refusal(
            400,
            f"'echo' with 'logprobs' asks for log-probabilities of the prompt, which are each member's own where "
            f"members {how}; {alone}.",
            param="echo",
        )
    return None
