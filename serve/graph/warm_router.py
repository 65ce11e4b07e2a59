"""Which engine answers a prompt: the one that has read the same start before.

An engine keeps the keys and values of the prompts that it has read (vLLM's prefix cache). So the turns of one
conversation belong on one engine. Ray Serve by itself takes the less busy of two."""

import json
import math
from collections.abc import Sequence
from hashlib import blake2b

from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from serve.engine.interface import GenerateCall

START = 512
"""Characters, or tokens, of a text that say which others begin as it does."""
BOUND = 1.25
"""How many times the mean of all engines' calls an engine may have and still get more by preference."""


class WarmRouter(PowerOfTwoChoicesRequestRouter):
    """Sends prompts that begin alike to one engine, as long as it is not busier than the others. Other calls go where
    Ray Serve would send them.

    The order of the engines for a start is that of rendezvous hashing (Thaler and Ravishankar 1998), so all gateways
    agree, and an engine that comes or goes moves only its own share. The bound on the load is that of Mirrokni, Thorup
    and Zadimoghaddam (2018). Ray's own router by hashes has no bound."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        start = _start(pending_request.args) if pending_request is not None else None
        if start is None or len(candidate_replicas) < 2:
            usual: list[list[RunningReplica]] = await super().choose_replicas(
                candidate_replicas, pending_request
            )
            return usual
        calls = [self._calls(each) for each in candidate_replicas]
        most = math.ceil(BOUND * (sum(calls) + 1) / len(calls))
        preferred = sorted(
            zip(candidate_replicas, calls, strict=True),
            key=lambda each: (each[1] < most, _rank(start, each[0].replica_id.unique_id)),
            reverse=True,
        )
        return [[replica] for replica, _ in preferred]  # the next one if one does not respond

    def _calls(self, replica: RunningReplica) -> int:
        """Return how many calls an engine has, as far as this process knows."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        """Give the engine to the request it was chosen for. Ray Serve gives it to the oldest one."""
        return self._get_pending_request_matching_internal_request_id(request_metadata)


def _start(arguments: Sequence[object]) -> bytes | None:
    """Return a hash of what calls have in common that should go to one engine; None if any engine will do."""
    call = arguments[0] if arguments else None
    if not isinstance(call, GenerateCall):
        return None
    body = call.body
    said = body.get("messages", body.get("input"))
    if key := body.get("prompt_cache_key"):  # OpenAI's field for this
        said = key
    elif isinstance(said, list):
        said = _opening(said)
    elif "prompt" in body:
        said = body["prompt"]
    return _hash(f"{call.version} {json.dumps(_beginning(said))}".encode())


def _opening(messages: Sequence[object]) -> Sequence[object]:
    """Return the messages up to the first one of the user: they stay the same in all turns of a conversation."""
    for number, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return messages[: number + 1]
    return messages


def _beginning(said: object) -> object:
    """Return the same with all texts and lists cut, so that a long prompt costs no more than a short one."""
    if isinstance(said, dict):
        return {name: _beginning(each) for name, each in said.items()}
    if isinstance(said, list):
        return [_beginning(each) for each in said[:START]]
    return said[:START] if isinstance(said, str) else said


def _rank(start: bytes, engine: str) -> bytes:
    return _hash(start + engine.encode())


def _hash(what: bytes) -> bytes:
    return blake2b(what, digest_size=8).digest()
