"""The rate limit of each caller."""

import pytest

from serve.gateway.http import rate
from serve.gateway.http.rate import RateLimit
from tests.serve.gateway.conftest import Start, refused
from tests.serve.gateway.http.test_auth import TOKENS, bearer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_of_requests_may_come_at_once_and_then_at_an_even_pace() -> None:
    clock = Clock()
    limit = RateLimit(30, clock)
    assert [limit.wait("ann") for _ in range(30)] == [0] * 30
    assert limit.wait("ann") == pytest.approx(2)
    assert limit.wait("bob") == 0
    clock.now = 1.9
    assert limit.wait("ann") == pytest.approx(0.1)
    clock.now = 2.0
    assert limit.wait("ann") == 0
    clock.now = 1000.0
    assert [limit.wait("ann") for _ in range(30)] == [0] * 30
    assert limit.wait("ann") > 0


def test_the_caller_that_was_quiet_longest_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate, "CALLERS", 2)
    limit = RateLimit(1, Clock())
    for caller in ("ann", "bob", "bob", "eve"):
        limit.wait(caller)
    assert limit.wait("bob") > 0
    assert limit.wait("ann") == 0


async def test_a_token_over_its_limit_is_told_when_to_come_back(start: Start) -> None:
    gateway = await start(**TOKENS, max_requests_per_minute=2)
    body = {"model": "intents", "input": "x"}
    for path in ("/v1/predict", "/v1/completions"):
        answer = await gateway.http.post(path, json=body, headers=bearer("boss"))
        assert answer.status_code == 200
    for path in ("/v1/predict", "/v1/ensembles/intents/rollback"):
        answer = await gateway.http.post(path, json={}, headers=bearer("boss"))
        error = refused(answer, 429, "token admin")
        assert error["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    answer = await gateway.http.post("/v1/predict", json=body, headers=bearer("ann"))
    assert answer.status_code == 200
    assert (await gateway.http.get("/health")).status_code == 200


async def test_each_token_has_a_limit_of_its_own_also_those_without_a_name(start: Start) -> None:
    gateway = await start(**TOKENS, max_requests_per_minute=2)
    body = {"model": "intents", "input": "x"}

    async def status(token: str) -> int:
        answer = await gateway.http.post("/v1/predict", json=body, headers=bearer(token))
        return answer.status_code

    assert [await status("ann") for _ in range(3)] == [200, 200, 429]
    assert [await status("bob") for _ in range(3)] == [200, 200, 429]
    assert await status("boss") == 200


async def test_guessing_tokens_is_limited_by_address(start: Start) -> None:
    gateway = await start(**TOKENS, max_requests_per_minute=3)
    statuses = [
        (await gateway.http.get("/v1/models", headers=bearer(f"guess{n}"))).status_code
        for n in range(5)
    ]
    assert statuses == [401, 401, 401, 429, 429]
    assert (await gateway.http.get("/v1/models", headers=bearer("ann"))).status_code == 200
