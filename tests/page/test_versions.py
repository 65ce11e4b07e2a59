"""Versions on the page: swaps, trials and rollbacks against the real controller, and what it refuses."""

import re

import httpx
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.page.chromium import visit
from tests.page.conftest import Server

SLOW = 20_000


def versions(context: BrowserContext, server: Server) -> Page:
    page = visit(context, server.url).page
    page.click("#tab-versions")
    expect(card(page)).to_be_visible()
    return page


def card(page: Page) -> Locator:
    return page.locator(".ensemble", has=page.locator("h2", has_text="intents"))


def active(server: Server) -> int:
    return int(httpx.get(f"{server.url}/v1/ensembles/intents").json()["active_version"])


def swap(page: Page, uri: str, **gates: str) -> Locator:
    """Fill in and send the form, and return what shows the rollout. With `gates`, it is a canary."""
    form = card(page).locator(".swap")
    if not form.evaluate("each => each.open"):
        form.locator("summary").click()
    form.get_by_label("Member a").fill(uri)
    if gates:
        form.get_by_label("Canary").check()
    for label, value in gates.items():
        form.get_by_label(label).fill(value)
    before = page.locator(".rollout").count()
    form.get_by_role("button", name="Start").click()
    expect(page.locator(".rollout")).to_have_count(before + 1, timeout=SLOW)
    return page.locator(".rollout").first


def test_what_is_active_is_shown_with_its_origin(context: BrowserContext, server: Server) -> None:
    page = versions(context, server)
    view = httpx.get(f"{server.url}/v1/ensembles/intents").json()
    expect(card(page).locator("h2")).to_contain_text(f"version {view['active_version']}")
    for member in view["members"]:
        (adapter,) = member["adapters"]
        expect(card(page)).to_contain_text(adapter["digest"].removeprefix("sha256:")[:12])
        expect(card(page)).to_contain_text(adapter["uri"])
    expect(card(page)).to_contain_text("engine/0")


def test_a_swap_and_a_rollback(context: BrowserContext, server: Server) -> None:
    page = versions(context, server)
    before = active(server)
    rollout = swap(page, server.new_adapter(11))
    expect(rollout).to_have_attribute("data-state", "done", timeout=SLOW)
    assert active(server) == before + 1
    expect(card(page).locator("h2")).to_contain_text(f"version {before + 1}")
    (adapter,) = httpx.get(f"{server.url}/v1/ensembles/intents").json()["members"][0]["adapters"]
    expect(card(page)).to_contain_text(f"by {adapter['swapped_by']}")
    card(page).get_by_role("button", name=f"Roll back to version {before}").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert active(server) == before + 1
    card(page).get_by_role("button", name=f"Roll back to version {before}").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(card(page).locator("h2")).to_contain_text(f"version {before}", timeout=SLOW)
    assert active(server) == before
    expect(page.locator("#history")).to_contain_text("intents: rollback")


def test_the_gates_of_a_canary_fill_until_it_is_aborted(
    context: BrowserContext, server: Server
) -> None:
    page = versions(context, server)
    before = active(server)
    canary = {"Share of the requests": "0.5", "Requests it must answer": "1000"}
    rollout = swap(page, server.new_adapter(12), **canary)
    expect(rollout).to_have_attribute("data-state", "canarying", timeout=SLOW)
    for number in range(40):
        body = {"model": "intents", "input": f"question {number}"}
        assert httpx.post(f"{server.url}/v1/predict", json=body).status_code == 200
    answered = rollout.locator(".gate", has_text="Requests answered")
    expect(answered.locator(".figure")).to_have_text(
        re.compile(r"^[1-9]\d* of 1000$"), timeout=SLOW
    )
    expect(answered).to_contain_text("not yet")
    expect(rollout.locator(".gate", has_text="Error rate")).to_contain_text("holds")
    rollout.get_by_role("button", name="Abort").click()
    expect(rollout).to_have_attribute("data-state", "aborted", timeout=SLOW)
    expect(rollout.locator("[role=status]")).to_contain_text("aborted")
    assert active(server) == before


def test_what_the_server_refuses_is_told_in_its_own_words(
    context: BrowserContext, server: Server
) -> None:
    page = versions(context, server)
    form = card(page).locator(".swap")
    form.locator("summary").click()
    form.get_by_role("button", name="Start").click()
    expect(form.get_by_role("alert")).to_contain_text("at least one member")
    form.get_by_label("Member b").fill("file:///etc")
    with page.expect_response("**/swap") as answered:
        form.get_by_role("button", name="Start").click()
    expect(form.get_by_role("alert")).to_have_text(answered.value.json()["error"]["message"])
    assert answered.value.status == 403
    expect(form.get_by_label("Member b")).to_have_value("file:///etc")


def test_a_swap_names_the_version_that_the_reader_saw(
    context: BrowserContext, server: Server
) -> None:
    page = versions(context, server)
    seen = active(server)
    with page.expect_request("**/swap") as sent:
        rollout = swap(page, server.new_adapter(13))
    assert sent.value.post_data_json == {
        "members": {"a": server.new_adapter(13)},
        "expected_version": seen,
        "strategy": {"kind": "immediate"},
    }
    expect(rollout).to_have_attribute("data-state", "done", timeout=SLOW)
