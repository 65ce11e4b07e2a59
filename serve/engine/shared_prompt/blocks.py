"""Which blocks of the KV cache requests share. Equal hashes mean equal keys and values, whatever the adapters are."""

from collections.abc import Iterable

from vllm.v1.request import Request


def whole_blocks(request: Request, block_size: int) -> int:
    """Returns how many of a request's blocks others can share: those without its last token, which waits for its
    siblings; none if it reads no cache."""
    if request.skip_reading_prefix_cache:
        return 0
    return min((int(request.num_tokens) - 1) // block_size, len(request.block_hashes))


def brought_by_others(requests: Iterable[Request], block_size: int) -> dict[str, int]:
    """Returns, for each request id, how many blocks the requests before it bring. The requests run in this order."""
    seen: set[bytes] = set()
    brought: dict[str, int] = {}
    for request in requests:
        count = whole_blocks(request, block_size)
        hashes = request.block_hashes
        shared = count
        while shared and hashes[shared - 1] not in seen:
            shared -= 1
        brought[request.request_id] = shared
        seen.update(hashes[:count])
    return brought
