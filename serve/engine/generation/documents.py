"""What Choir adds to vLLM's OpenAI documents: the members' tokens in `usage`, and in each choice what they said."""

import json
from typing import Any

from serve.engine.generation.client import GenerationContext
from serve.engine.interface import GenerateCall


def complete(body: bytes, context: GenerationContext, call: GenerateCall) -> bytes:
    """A whole answer, completed."""
    if not _concerned(context):
        return body
    document = json.loads(body)
    _complete(document, context, call)
    return json.dumps(document).encode()


def complete_events(part: bytes, context: GenerationContext, call: GenerateCall) -> bytes:
    """The same for server-sent events; vLLM sends whole ones."""
    if not _concerned(context):
        return part
    lines = part.decode().split("\n")
    for number, line in enumerate(lines):
        if line.startswith("data: {"):
            document = json.loads(line.removeprefix("data: "))
            _complete(document, context, call)
            lines[number] = f"data: {json.dumps(document)}"
    return "\n".join(lines).encode()


def _concerned(context: GenerationContext) -> bool:
    return len(context.runs) > 1 or bool(context.absent)


def _complete(document: dict[str, Any], context: GenerationContext, call: GenerateCall) -> None:
    if "choices" not in document:
        return  # an error in the middle of a stream
    if context.absent:
        document["absent_members"] = list(context.absent)
    if len(context.runs) == 1:
        return
    if document.get("usage"):
        document["usage"]["member_tokens"] = context.member_tokens
    if not call.return_members:
        return
    if context.fusion is None:
        _tell_votes(document, context, call)
    else:
        _tell_tokens(document, context, call)


def _tell_votes(document: dict[str, Any], context: GenerationContext, call: GenerateCall) -> None:
    """Every member's whole answer, once it is decided."""
    votes = {_prompt_index(id_, call): vote for id_, vote in context.votes.items()}
    for choice in document["choices"]:
        if choice["index"] not in votes:
            continue
        verdict, answers = votes[choice["index"]]
        choice["agreement"] = verdict.share
        choice["members"] = [
            {"name": run.name, "text": text, "agrees": key == verdict.keys[verdict.winner]}
            for run, text, key in zip(context.runs, answers, verdict.keys, strict=True)
        ]


def _tell_tokens(document: dict[str, Any], context: GenerationContext, call: GenerateCall) -> None:
    """For each token since the last document about a choice: every member's log-probability, and the disagreement."""
    each = call.body.get("n") or 1
    reports = {
        _prompt_index(id_, call) * each + choice: pending
        for (id_, choice), pending in context.reports.items()
    }
    for choice in document["choices"]:
        pending = reports.get(choice["index"], [])
        choice["disagreement"] = [nats for report in pending for nats in report.disagreement]
        choice["members"] = [
            {
                "name": run.name,
                "adapters": [ref.model_dump() for ref in run.member.adapters],
                "token_logprobs": [value for report in pending for value in report.members[place]],
            }
            for place, run in enumerate(context.runs)
        ]
        pending.clear()


def _prompt_index(request_id: str, call: GenerateCall) -> int:
    """vLLM ends the request id of a completion's i-th prompt with -i; a chat has one prompt."""
    return int(request_id.rpartition("-")[2]) if call.route == "completions" else 0
