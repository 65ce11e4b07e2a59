"""`GET /report/{ensemble}`, with a faked controller."""

from serve.errors import Refusal
from serve.gateway.links import Unavailable
from tests.serve.gateway.conftest import Gateway, Start, refused


async def test_the_page_may_run_nothing_and_ask_no_host(gateway: Gateway) -> None:
    response = await gateway.http.get("/report/intents")
    assert (response.status_code, response.text) == (200, "<!doctype html><p>report</p>")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "sandbox"} <= set(policy)
    assert not any(part.startswith("script-src") for part in policy)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert gateway.control.asked == [("report", "intents")]


async def test_a_refusal_and_a_missing_controller_are_sentences(gateway: Gateway) -> None:
    gateway.control.refusal = Refusal(404, "There is no report on intents.", "no_report")
    refused(await gateway.http.get("/report/intents"), 404, "no report on intents")
    gateway.control.error = Unavailable("The controller cannot be reached now.")
    refused(await gateway.http.get("/report/intents"), 503, "cannot be reached")


async def test_a_closed_server_shows_its_report_to_readers_only(start: Start) -> None:
    gateway = await start(inference_tokens=["secret"])
    refused(await gateway.http.get("/report/intents"), 401, "token is missing")
    assert gateway.control.asked == []
    headers = {"authorization": "Bearer secret"}
    assert (await gateway.http.get("/report/intents", headers=headers)).status_code == 200


async def test_a_name_is_no_path(gateway: Gateway) -> None:
    for name in ("a/b", "..%2Fsecret", "%2e%2e/secret", "a%2fb"):
        refused(await gateway.http.get(f"/report/{name}"), 404)
    assert gateway.control.asked == []
