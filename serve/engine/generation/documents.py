"""Adds Choir's fields to vLLM's OpenAI documents: the members' tokens in `usage`, and their answers in each choice."""

import json
from typing import Any

from serve.engine.generation.client import GenerationContext
from serve.engine.interface import GenerateCall
from serve.engine.lockstep.sibling_spec import TokenFusion


def complete(body: bytes, context: GenerationContext, call: GenerateCall) -> bytes:
    """Returns the JSON document of a whole answer with Choir's fields."""
    if not _has_additions(context):
        return body
    document = json.loads(body)
    _complete(document, context, call)
    return json.dumps(document).encode()


def complete_events(part: bytes, context: GenerationContext, call: GenerateCall) -> bytes:
    """Returns server-sent events with Choir's fields. vLLM sends whole events, never parts of one."""
    if not _has_additions(context):
        return part
    lines = part.decode().split("\n")
    for number, line in enumerate(lines):
        if line.startswith("data: {"):
            document = json.loads(line.removeprefix("data: "))
            _complete(document, context, call)
            lines[number] = f"data: {json.dumps(document)}"
    return "\n".join(lines).encode()


def _has_additions(context: GenerationContext) -> bool:
    return len(context.member_runs) > 1 or bool(context.absent)


def _complete(document: dict[str, Any], context: GenerationContext, call: GenerateCall) -> None:
    document = document.get("response") or document  # of an event in a response's stream
    if "choices" not in document and document.get("object") != "response":
        return  # an error in the middle of a stream, or a piece of a response
    if context.absent:
        document["absent_members"] = list(context.absent)
    if len(context.member_runs) == 1:
        return
    if document.get("usage"):
        document["usage"]["member_tokens"] = context.member_tokens
        document["usage"]["computed_tokens"] = context.computed_tokens
    if not call.return_members or call.route == "responses":
        return
    if isinstance(context.fusion, TokenFusion):
        _add_token_reports(document, context, call)
    else:
        _add_answers(document, context, call)


def _add_answers(document: dict[str, Any], context: GenerationContext, call: GenerateCall) -> None:
    """Adds every member's whole answer to the choices that were made among them."""
    chosen = {_prompt_index(id_, call): each for id_, each in context.choices.items()}
    for choice in document["choices"]:
        if choice["index"] not in chosen:
            continue
        made, answers = chosen[choice["index"]]
        choice["agreement"] = made.share
        choice["members"] = [
            {"name": run.name, "text": text, "agrees": key == made.keys[made.winner]}
            for run, text, key in zip(context.member_runs, answers, made.keys, strict=True)
        ]


def _add_token_reports(
    document: dict[str, Any], context: GenerationContext, call: GenerateCall
) -> None:
    """Adds, for each token since the last document about a choice, every member's log-probability and the
    disagreement."""
    choices = call.body.get("n") or 1
    reports = {
        _prompt_index(id_, call) * choices + choice: pending
        for (id_, choice), pending in context.reports.items()
    }
    for choice in document["choices"]:
        pending = reports.get(choice["index"], [])
        choice["disagreement"] = [nats for report in pending for nats in report.disagreement]
        choice["members"] = [
            {
                "name": run.name,
                "adapters": [ref.model_dump() for ref in run.member.adapters],
                "token_logprobs": [value for report in pending for value in report.members[rank]],
            }
            for rank, run in enumerate(context.member_runs)
        ]
        pending.clear()


def _prompt_index(request_id: str, call: GenerateCall) -> int:
    """Returns the prompt's number.

    vLLM ends the request id of a completion's i-th prompt with -i; a chat has one prompt."""
    return int(request_id.rpartition("-")[2]) if call.route == "completions" else 0
