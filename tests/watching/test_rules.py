"""The alerting rules and the dashboard as files: what `promtool` says, and that all they name exists."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.watching.prometheus import DEPLOYMENTS, RULES, needs_prometheus, shortened

DOCS = DEPLOYMENTS.parent / "docs"
DASHBOARD = json.loads((DEPLOYMENTS / "grafana" / "dashboard.json").read_text())
METRIC = re.compile(r"\b(?:choir_\w+|vllm:\w+)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@needs_prometheus
def test_prometheus_takes_the_files() -> None:
    promtool("check", "config", DEPLOYMENTS / "prometheus" / "prometheus.yml")


@needs_prometheus
def test_each_alert_fires_for_made_series_and_not_for_sound_ones() -> None:
    promtool("test", "rules", Path(__file__).parent / "rules_test.yml")


@needs_prometheus
def test_the_rules_of_tests_are_the_deployed_ones_with_short_durations(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(shortened(RULES.read_text(), "8s"))
    promtool("check", "rules", rules)
    deployed, short = (
        yaml.safe_load(each)["groups"] for each in (RULES.read_text(), rules.read_text())
    )
    digits = re.compile(r"\[\w+\]|offset \w+")
    for one, other in zip(deployed, short, strict=True):
        for rule, same in zip(one["rules"], other["rules"], strict=True):
            assert digits.sub("", rule["expr"]) == digits.sub("", same["expr"])
            assert rule.keys() == same.keys()


@pytest.mark.parametrize("alert", alerts(), ids=lambda each: each["alert"])
def test_each_alert_has_an_incident_page(alert: dict[str, Any]) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page.endswith("/docs/incidents.md")
    assert anchor == alert["alert"].lower()
    titles = re.findall(r"(?m)^## (\w+)$", (DOCS / "incidents.md").read_text())
    assert alert["alert"] in titles


def test_every_incident_has_an_alert() -> None:
    titles = re.findall(r"(?m)^## (Choir\w+)$", (DOCS / "incidents.md").read_text())
    assert titles == [each["alert"] for each in alerts()]


def test_what_the_rules_and_the_dashboard_name_is_explained() -> None:
    page = (DOCS / "watching.md").read_text()
    recorded = set(re.findall(r"record: (\S+)", RULES.read_text()))
    queries = [rule["expr"] for rule in alerts()]
    queries += [target["expr"] for panel in panels() for target in panel["targets"]]
    named = {SUFFIX.sub("", name) for query in queries for name in METRIC.findall(query)}
    for name in named - {part for each in recorded for part in METRIC.findall(each)}:
        assert name in page, f"docs/watching.md does not explain {name}"


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Grafana itself is not run; this is what its importer needs (39 is the schema of Grafana 10.3 and later)."""
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["id"] is None
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        assert {"type", "title", "description", "fieldConfig", "options"} <= panel.keys()
        for source in (panel["datasource"], *(each["datasource"] for each in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
        references = [each["refId"] for each in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not taken & cells, panel["title"]
        taken |= cells


def test_grafana_is_told_where_dashboard_and_prometheus_are() -> None:
    provisioning = DEPLOYMENTS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert "uid" not in source
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "choir.yml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
