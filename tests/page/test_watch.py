"""Watching on the page: Prometheus' text read as Prometheus' own parser does, and plots with their words."""

import math
import re
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.page.chromium import visit
from tests.page.conftest import Server

PARSE = """async (text) => {
    const { parse } = await import("/page/scripts/metrics.js");
    const samples = [...parse(text)].flatMap(([name, all]) => all.map((each) => ({ name, ...each })));
    return samples.map(({ name, labels, value }) => [name, labels, String(value)]);
}"""
GROWN = """async ([before, after, shares]) => {
    const { parse, Span } = await import("/page/scripts/metrics.js");
    const span = new Span(parse(before), parse(after), 10);
    return {
        quantiles: shares.map((share) => span.quantile(share, "took")),
        mean: span.mean("took"),
        grown: span.growth("asked_total"),
    };
}"""


@pytest.fixture
def page(context: BrowserContext, server: Server) -> Page:
    return visit(context, server.url).page


def test_the_text_is_read_as_prometheus_reads_it(page: Page) -> None:
    registry = CollectorRegistry()
    odd = ['a "quoted" one', "back\\slash", "two\nlines", "{x=1}, y", ""]
    counter = Counter("asked", "Asked.", ["name", "other"], registry=registry)
    for number, name in enumerate(odd):
        counter.labels(name, "}").inc(number + 0.5)
    gauge = Gauge("level", "Level.", ["kind"], registry=registry)
    for kind, value in {
        "inf": math.inf,
        "less": -math.inf,
        "none": math.nan,
        "small": 1e-9,
    }.items():
        gauge.labels(kind).set(value)
    Histogram("took", "Took.", registry=registry).observe(0.3)
    text = generate_latest(registry).decode()
    expected = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    read = [(name, labels, float(value)) for name, labels, value in page.evaluate(PARSE, text)]
    assert [each[:2] for each in read] == [each[:2] for each in expected]
    np.testing.assert_array_equal([each[2] for each in read], [each[2] for each in expected])


def test_quantiles_are_of_what_was_seen_between_two_readings(page: Page) -> None:
    edges = [0.1, 0.2, 0.5, 1.0, 2.0]
    registry = CollectorRegistry()
    histogram = Histogram("took", "Took.", ["replica"], buckets=edges, registry=registry)
    counter = Counter("asked", "Asked.", registry=registry)
    histogram.labels("0").observe(1.7)
    counter.inc(5)
    before = generate_latest(registry).decode()
    rng = np.random.default_rng(3)
    seen = rng.uniform(0, 2, 500)
    for number, value in enumerate(seen):
        histogram.labels(str(number % 2)).observe(value)
    counter.inc(7)
    after = generate_latest(registry).decode()
    shares = [0.1, 0.5, 0.9, 0.99]
    read = page.evaluate(GROWN, [before, after, shares])
    # Linear between the edges of the buckets, as histogram_quantile says.
    counts = np.searchsorted(np.sort(seen), edges, side="right")
    expected = np.interp(np.array(shares) * len(seen), [0, *counts], [0, *edges])
    assert read["quantiles"] == pytest.approx(expected.tolist())
    assert read["mean"] == pytest.approx(seen.mean())
    assert read["grown"] == 7
    again = page.evaluate(GROWN, [after, after, shares])
    assert again["quantiles"] == [None] * len(shares)


def test_a_restarted_server_counts_from_nothing(page: Page) -> None:
    read = page.evaluate(GROWN, ["asked_total 500\n", "asked_total 20\n", [0.5]])
    assert read["grown"] == 20


def metrics(
    answered: int = 0, agreeing: int = 0, psi: float = 0, changed: int = 0, same: int = 0
) -> str:
    """Return what a server says, with the figures of drift."""
    common = 'ensemble="intents",replica="0"'
    agreement = f'choir_member_agreement_total{{{common},member="a",agrees='
    changes = f'choir_member_changed_answers_total{{{common},member="a",changed='
    requests = 'choir_requests_total{status="200",track="stable",replica="0",'
    return f"""{requests}ensemble="intents",route="/v1/predict"}} {answered}
{requests}ensemble="",route="/metrics"}} {answered * 9}
{agreement}"true"}} {agreeing}
{agreement}"false"}} {answered - agreeing}
{changes}"true"}} {changed}
{changes}"false"}} {same}
choir_active_version{{{common}}} 4
choir_drift_psi{{{common},figure="entropy"}} {psi}
"""


def follow(context: BrowserContext, server: Server, texts: list[str]) -> Page:
    """Open the tab over a server whose /metrics says these texts in turn."""
    told = iter(texts)
    last = texts[-1]

    def answer(route: Any) -> None:
        route.fulfill(body=next(told, last), content_type="text/plain")

    context.route("**/metrics", answer)
    page = visit(context, server.url).page
    page.click("#tab-watch")
    return page


def plot(page: Page, title: str) -> Any:
    return page.locator(".plot", has=page.get_by_role("heading", name=title, exact=True))


def test_plots_say_in_words_what_they_draw(context: BrowserContext, server: Server) -> None:
    later = metrics(answered=40, agreeing=30, psi=0.31, changed=5, same=15)
    page = follow(context, server, [metrics(), later])
    for title, said in {
        "Agreement": "intents/a: 75.0 % now",
        "Drift": "intents entropy: 0.31 now",
        "Members that matter": "intents/a: 25.0 % now",
        "Active versions": "intents: 4 now",
    }.items():
        drawing = plot(page, title).get_by_role("img")
        words = re.compile(re.escape(f"{title}. {said}"))
        expect(drawing).to_have_attribute("aria-label", words, timeout=10_000)
        assert plot(page, title).locator("path.series").count() == 1
        plot(page, title).get_by_text("As a table").click()
        expect(plot(page, title).locator("tbody tr").first).to_be_visible()
    answered = plot(page, "Throughput").get_by_role("img").get_attribute("aria-label") or ""
    # 40 of the page's own kind in the 2.5 seconds between two readings; none of the 360 of /metrics.
    rate = float(answered.split("answered: ")[1].split(" ")[0])
    assert 40 / 6 < rate < 40 / 2


def test_figures_that_the_server_does_not_have_are_not_drawn(
    context: BrowserContext, server: Server
) -> None:
    lines = [line for line in metrics(answered=4).splitlines() if "drift" not in line]
    page = follow(context, server, ["\n".join(lines)])
    page.wait_for_function("document.querySelector('#watched').options.length > 1")
    expect(plot(page, "Drift")).to_be_hidden()
    expect(plot(page, "Throughput")).to_be_visible()


def test_the_real_servers_figures_are_drawn(context: BrowserContext, server: Server) -> None:
    page = visit(context, server.url).page
    page.click("#tab-watch")
    body = {"model": "intents", "input": ["one", "two", "three"]}
    expect(plot(page, "Throughput").locator("path.series").first).to_be_attached(timeout=10_000)
    assert httpx.post(f"{server.url}/v1/predict", json=body).status_code == 200
    for title in ("Latency", "Agreement", "Disagreement", "Throughput", "In flight"):
        expect(plot(page, title).locator("path.series").first).to_be_attached(timeout=10_000)
