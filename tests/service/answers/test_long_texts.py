"""A text that is far too long is refused unread, and nobody else waits for it."""

import threading
import time
from statistics import median
from typing import Any

import httpx
import pytest

from tests.service.models import TEXTS
from tests.service.running import Service

pytestmark = pytest.mark.engine

WORD = "card " * 6_000_000
"""30 MB."""
CHAT = [{"role": "user", "content": WORD}]
LONG: list[tuple[str, dict[str, Any]]] = [
    ("/v1/predict", {"model": "intents", "input": WORD}),
    ("/v1/predict", {"model": "intents", "input": "a" * 30_000_000}),
    ("/v1/predict", {"model": "intents", "input": [WORD[: 30_000_000 // 1024]] * 1024}),
    ("/v1/completions", {"model": "replies", "prompt": WORD}),
    ("/v1/completions", {"model": "replies", "prompt": [WORD[:30_000]] * 1000}),
    ("/v1/completions", {"model": "replies/a", "prompt": WORD, "stream": True}),
    ("/v1/chat/completions", {"model": "replies", "messages": CHAT}),
]


def seconds(service: Service, path: str, body: dict[str, Any], status: int) -> float:
    started = time.perf_counter()
    response = service.post(path, body)
    assert response.status_code == status, response.text[:500]
    if status != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return time.perf_counter() - started


def usual(service: Service) -> float:
    """Return the median latency of a short request."""
    body = {"model": "intents", "input": TEXTS[0]}
    return median(seconds(service, "/v1/predict", body, 200) for _ in range(9))


@pytest.mark.parametrize(("path", "body"), LONG)
def test_a_30_mb_body_is_refused_unread_and_the_next_request_is_as_fast_as_ever(
    service: Service, path: str, body: dict[str, Any]
) -> None:
    """Refusing it takes about as long as a body of that size to a model that does not exist. To read
    its tokens would take many times as long."""
    before = usual(service)
    parsed = [seconds(service, path, {**body, "model": "nobody"}, 404) for _ in range(2)]
    taken = [seconds(service, path, body, 400) for _ in range(2)]
    after = usual(service)
    print(
        f"{path}: refused after {min(taken):.2f} s, unknown model {min(parsed):.2f} s; "
        f"next {after:.3f} s, before {before:.3f} s"
    )
    assert min(taken) < 4 * min(parsed), (taken, parsed)
    assert after < 3 * before + 0.05, (before, after)


def test_a_request_of_many_inputs_leaves_room_for_others(service: Service) -> None:
    """A request of 512 inputs, three members and six labels does not make the next request wait for all of it."""
    many = {"model": "intents", "input": [f"{number} {TEXTS[1]}" for number in range(512)]}
    whole: list[float] = []
    thread = threading.Thread(
        target=lambda: whole.append(seconds(service, "/v1/predict", many, 200))
    )
    waits = []
    with httpx.Client(base_url=service.url, timeout=120) as client:
        thread.start()
        while thread.is_alive():
            started = time.perf_counter()
            body = {"model": "intents", "input": f"{len(waits)} {TEXTS[0]}"}
            assert client.post("/v1/predict", json=body).status_code == 200
            waits.append(time.perf_counter() - started)
    thread.join()
    print(
        f"all inputs after {whole[0]:.1f} s; others {median(waits):.3f} s, at most {max(waits):.3f} s"
    )
    assert max(waits) < whole[0] / 4, (whole, waits)
