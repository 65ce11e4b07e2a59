"""Whether the prompts or messages of an OpenAI call can fit the context, decided before any text is tokenized."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from serve.engine.interface import GenerateCall
from serve.engine.limits.text_limit import TextLimit
from serve.errors import Refusal


def length_refusal(call: GenerateCall, limit: TextLimit) -> Refusal | None:
    """Returns why the prompts or messages of a call cannot fit the model's context; None if they may.

    Looks at lengths alone, so that a text of any size costs nothing. vLLM counts the tokens of the rest, and refuses
    values of a wrong type."""
    for name, text in (call.prompts or {}).items():
        if reason := limit.too_long(len(text)):
            return Refusal(400, f"The prompt of {name!r}: {reason}", param="fusion.prompts")
    if call.route == "detokenize":
        return None
    if call.route == "responses":
        field, reason = "input", _input(call.body, limit)
    elif call.route == "chat" or (call.route == "tokenize" and "messages" in call.body):
        field, reason = "messages", _messages(call.body.get("messages"), limit)
    else:
        cut = call.body.get("truncate_prompt_tokens") is not None
        field, reason = "prompt", _prompts(call.body.get("prompt"), limit, cut)
    return Refusal(400, reason, param=field) if reason else None


def doubtful_prompts(call: GenerateCall, limit: TextLimit) -> list[str]:
    """Returns the prompts of a completion that probably do not fit. vLLM would tokenize all of them before it refuses
    the first. Returns none if the call asks vLLM to truncate its prompts."""
    given = call.body.get("prompt") if call.route == "completions" else None
    texts = given if isinstance(given, list) else [given]
    if call.body.get("truncate_prompt_tokens") is not None:
        return []
    return [text for text in texts if isinstance(text, str) and limit.doubtful(text)]


def _input(body: Mapping[str, Any], limit: TextLimit) -> str | None:
    """Returns why the input of a response cannot fit: all its texts together are too long, or it has too many items."""
    given, instructions = body.get("input"), body.get("instructions")
    items = given if isinstance(given, list) else []
    parts = sum(len(_parts(each)) for each in _dicts(items))
    texts = [given, instructions, *_texts(items)]
    texts += [each.get("output") for each in _dicts(items)]
    return limit.too_many_tokens(max(len(items), parts)) or limit.too_long(
        sum(len(text) for text in texts if isinstance(text, str))
    )


def _prompts(given: Any, limit: TextLimit, cut: bool) -> str | None:
    """Returns why a prompt cannot fit. A prompt is a text, a list of token ids, or a list of either.

    `cut`: vLLM truncates the prompt, so only the limit on characters holds, for token ids too."""
    if isinstance(given, str):
        return limit.too_long(len(given))
    if not isinstance(given, list) or not given:
        return None
    if isinstance(given[0], int):
        return limit.too_long(len(given)) if cut else limit.too_many_tokens(len(given))
    reasons = (_prompts(each, limit, cut) for each in given if isinstance(each, str | list))
    return next((reason for reason in reasons if reason), None)


def _messages(given: Any, limit: TextLimit) -> str | None:
    """Returns why a chat cannot fit: its texts together are too long, or it has too many messages or parts. A chat
    template writes at least one token for each."""
    if not isinstance(given, list):
        return None
    parts = sum(len(_parts(each)) for each in _dicts(given))
    return limit.too_many_tokens(max(len(given), parts)) or limit.too_long(
        sum(map(len, _texts(given)))
    )


def _texts(messages: Sequence[Any]) -> Iterator[str]:
    for message in _dicts(messages):
        if isinstance(message.get("content"), str):
            yield message["content"]
        for part in _dicts(_parts(message)):
            if isinstance(part.get("text"), str):
                yield part["text"]


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


def _dicts(values: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (each for each in values if isinstance(each, dict))
