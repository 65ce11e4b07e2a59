"""`GET /` and the files of the page."""

import re

import pytest

from serve.gateway.routes.home import PAGE
from tests.serve.gateway.conftest import Gateway, Start, refused

TYPES = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "scripts/main.js": "text/javascript; charset=utf-8",
}


async def test_the_page_needs_no_token_and_asks_nobody(start: Start) -> None:
    gateway = await start(inference_tokens=["ann"])
    response = await gateway.http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert gateway.control.asked == []


@pytest.mark.parametrize("name", TYPES)
async def test_a_file_has_its_type(gateway: Gateway, name: str) -> None:
    response = await gateway.http.get(f"/page/{name}")
    assert response.content == (PAGE / name).read_bytes()
    assert response.headers["content-type"] == TYPES[name]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_all_that_the_page_loads_is_there_and_ours(gateway: Gateway) -> None:
    page = (await gateway.http.get("/")).text
    loaded = re.findall(r'(?:href|src)="([^"#]+)"', page)
    assert {"/page/style.css", "/page/scripts/main.js"} <= set(loaded)
    for path in loaded:
        assert (await gateway.http.get(path)).status_code == 200, path


async def test_a_browser_runs_no_script_of_another_place(gateway: Gateway) -> None:
    for path in ("/", "/page/scripts/main.js"):
        policy = (await gateway.http.get(path)).headers["content-security-policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["connect-src"] == rules["style-src"] == "'self'"
        assert "unsafe" not in policy


async def test_a_file_that_the_browser_has_is_not_sent_again(gateway: Gateway) -> None:
    first = await gateway.http.get("/page/style.css")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await gateway.http.get("/page/style.css", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    other = await gateway.http.get("/page/style.css", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "../routes/home.py", "..%2froutes%2fhome.py", ""])
async def test_no_other_file_is_served(gateway: Gateway, name: str) -> None:
    refused(await gateway.http.get(f"/page/{name}"), 404)
