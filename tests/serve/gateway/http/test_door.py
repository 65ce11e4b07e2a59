"""A gateway lets nobody in once the server stops, and waits for those who are inside."""

import asyncio

import httpx
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve.gateway.http.door import Door, Doorkeeper


class Slow:
    """Answers once it is told to."""

    def __init__(self) -> None:
        self.entered, self.answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        await self.answer.wait()
        await PlainTextResponse("done")(scope, receive, send)


async def test_who_is_inside_is_answered_and_nobody_else() -> None:
    slow, door = Slow(), Door()
    transport = httpx.ASGITransport(Doorkeeper(slow, door))
    async with httpx.AsyncClient(transport=transport, base_url="http://choir") as http:
        inside = asyncio.create_task(http.get("/"))
        await slow.entered.wait()
        closing = asyncio.create_task(door.close(60))
        await asyncio.sleep(0)
        late = await http.get("/")
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert "is stopping" in late.json()["error"]["message"]
        assert not closing.done()
        slow.answer.set()
        assert (await inside).text == "done"
        assert await closing


async def test_nobody_inside_is_not_waited_for_and_nor_is_one_that_takes_too_long() -> None:
    assert await Door().close(60)
    door = Door()
    door.enter()
    assert not await door.close(0.01)
    door.leave()
    assert await door.close(60)
