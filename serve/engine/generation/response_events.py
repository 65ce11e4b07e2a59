"""The events of a streamed response of `/v1/responses`, and what becomes of an error among them."""

from collections.abc import AsyncGenerator, AsyncIterator

from vllm.exceptions import GenerationError, VLLMValidationError

from serve.errors import Refusal

_BEFORE = (b"event: response.created\n", b"event: response.in_progress\n")
"""Events that vLLM sends before it asks the engine."""


async def begun(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes | Refusal, None]:
    """Yields the events of a response once the engine has begun to answer, so that its refusal comes instead of them.

    vLLM's other routes send an error as an event; this one breaks off. A refusal is the last item."""
    held: list[bytes] = []
    try:
        async for part in parts:
            if part.startswith(_BEFORE):
                held.append(part)
                continue
            for each in held:
                yield each
            held.clear()
            yield part
    except Exception as error:
        refusal = _refused(error)
        if refusal is None:
            raise
        yield refusal


def _refused(error: BaseException | None) -> Refusal | None:
    """Returns what the engine refused or could not end, if that is what an exception comes from; else None."""
    while error is not None:
        if isinstance(error, VLLMValidationError):
            return Refusal(400, str(error.args[0]), param=error.parameter)
        if isinstance(error, GenerationError):
            return Refusal(500, str(error))
        error = error.__cause__ or error.__context__
    return None
