"""A session in a real browser over real engines: the page predicts, streams, swaps, watches a canary and rolls back."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.chromium import browsing, visit
from tests.service.models import TEXTS, Models
from tests.service.running import Service

pytestmark = pytest.mark.engine

SLOW = 60_000


@pytest.fixture
def page(service: Service) -> Iterator[Page]:
    with browsing() as browser:
        visited = visit(browser.new_context(), service.url, SLOW)
        yield visited.page
        assert (visited.complaints, visited.foreign) == ([], [])


@pytest.fixture
def _as_found(service: Service, models: Models) -> Iterator[None]:
    """Every member has the adapter of its own name, before and after."""
    body = {"members": {name: models.uri(name) for name in ("a", "b", "c")}}
    for turn in range(2):
        response = service.post("/v1/ensembles/intents/swap?wait=true", body)
        assert response.status_code == 200, response.text
        if turn == 0:
            yield


def active(service: Service) -> int:
    return int(service.get("/v1/ensembles/intents").json()["active_version"])


def member(service: Service, name: str) -> str:
    """Return the digest of the member's adapter in the active version."""
    members = service.get("/v1/ensembles/intents").json()["members"]
    (adapter,) = next(each["adapters"] for each in members if each["name"] == name)
    return str(adapter["digest"])


def card(page: Page) -> Locator:
    return page.locator(".ensemble", has=page.get_by_role("heading", name="intents"))


def start(page: Page, uri: str, **canary: str) -> Locator:
    """Swap member a on the page, with fields of a canary if there are any; return what shows the rollout."""
    form = card(page).locator(".swap")
    form.locator("summary").click()
    form.get_by_label("Member a").fill(uri)
    form.get_by_label("Canary" if canary else "Immediate").check()
    for label, value in canary.items():
        form.get_by_label(label).fill(value)
    shown = page.locator(".rollout")
    before = shown.count()
    form.get_by_role("button", name="Start").click()
    expect(shown).to_have_count(before + 1, timeout=SLOW)
    return shown.first


@pytest.mark.usefixtures("_as_found")
def test_a_session(page: Page, service: Service, models: Models) -> None:
    page.select_option("#model", "intents")
    page.fill("#input", "\n".join(TEXTS[:2]))
    page.click("#send")
    expect(page.locator(".answer")).to_have_count(2, timeout=SLOW)
    body = {"model": "intents", "input": TEXTS[0], "return_members": True}
    (row,) = service.post("/v1/predict", body).json()["data"]
    voices = page.locator(".answer").first.locator(".voices tbody tr").all_inner_texts()
    for said, voice in zip(voices, [row, *row["members"]], strict=True):
        assert voice["label"] in said
        assert f"{voice['probabilities'][voice['label']] * 100:.1f} %" in said

    page.select_option("#model", "replies")
    page.select_option("#method", "average")
    page.fill("#max-tokens", "12")
    page.fill("#input", "where is my card")
    page.click("#send")
    expect(page.locator("#ask-said")).to_contain_text("Written by replies@", timeout=SLOW)
    tokens = page.locator(".tokens [role=option]")
    assert tokens.count() > 1
    assert "".join(tokens.all_text_contents()) == page.locator(".strip .unseen").text_content()
    tokens.first.focus()
    expect(page.locator(".detail li .name")).to_have_text(["Together", "a", "b", "c"])
    assert tokens.first.get_attribute("data-level") in set("01234")

    page.click("#tab-versions")
    first = active(service)
    rollout = start(page, models.uri("a2"))
    expect(rollout).to_have_attribute("data-state", "done", timeout=SLOW)
    swapped = active(service)
    assert (swapped > first, member(service, "a")) == (True, models.digest("a2"))

    gates = {"Share of the requests": "0.5", "Requests it must answer": "30"}
    trial = start(page, models.uri("b2"), **gates)
    expect(trial).to_have_attribute("data-state", "canarying", timeout=SLOW)
    answered = trial.locator(".gate", has_text="Requests answered")
    figure = answered.locator(".figure")
    expect(figure).to_have_text("0 of 30")
    for turn in range(40):
        asked = {"model": "intents", "input": TEXTS[turn % len(TEXTS)]}
        assert service.post("/v1/predict", asked).status_code == 200
    expect(figure).to_have_text(re.compile(r"[1-9]\d* of 30"), timeout=SLOW)
    while trial.get_attribute("data-state") == "canarying":
        assert service.post("/v1/predict", body).status_code == 200
    expect(trial).to_have_attribute("data-state", "done", timeout=SLOW)
    expect(answered).to_contain_text("holds")
    assert (active(service) > swapped, member(service, "a")) == (True, models.digest("b2"))

    card(page).get_by_role("button", name=f"Roll back to version {swapped}").click()
    shown = page.locator(".rollout")
    before = shown.count()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(shown).to_have_count(before + 1, timeout=SLOW)
    expect(shown.first).to_have_attribute("data-state", "done", timeout=SLOW)
    assert (active(service), member(service, "a")) == (swapped, models.digest("a2"))

    page.click("#tab-watch")
    for title in ("Latency", "Throughput", "Agreement", "Disagreement", "Swaps"):
        plot = page.locator(".plot", has=page.get_by_role("heading", name=title, exact=True))
        expect(plot.locator("path.series").first).to_be_attached(timeout=SLOW)
