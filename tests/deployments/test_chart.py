"""The Helm chart: its values, what its templates refer to, and, where Helm is installed, what it renders."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deployments.test_manifests import (
    check_application,
    check_core,
    check_ray_service,
    documents,
)

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deployments" / "helm" / "choir"
VALUES = ["values.yaml", "values-gpu.yaml"]
TEMPLATES = sorted((CHART / "templates").iterdir())
MONITORING = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, whose schemas are in no package."""


def _merged(name: str) -> dict[str, Any]:
    """What Helm makes of `values.yaml` and the file that is given with `-f`."""

    def over(below: Any, above: Any) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        both = {key: over(below[key], above[key]) for key in below.keys() & above.keys()}
        return {**below, **above, **both}

    first, more = (yaml.safe_load((CHART / each).read_text()) for each in (VALUES[0], name))
    merged: dict[str, Any] = over(first, more)
    return merged


@pytest.mark.parametrize("name", VALUES)
def test_the_values_fit_their_schema(name: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(_merged(name), schema)

    for wrong in ({"imagee": {}}, {"settings": {"bundles": ["b"], "replicas": 3}}, {"secret": ""}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(_merged(name) | wrong, schema)


def test_templates_refer_to_values_that_exist() -> None:
    values = _merged(VALUES[0])
    text = "".join(file.read_text() for file in TEMPLATES)
    named = set(re.findall(r"\.Values\.([\w.]+)", text))

    def is_there(path: str) -> bool:
        found: Any = values
        for part in path.split("."):
            if not isinstance(found, dict) or part not in found:
                return False
            found = found[part]
        return True

    assert {path for path in named if not is_there(path)} == set()
    # And each value is used.
    assert set(values) == {path.partition(".")[0] for path in named}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_blocks_of_templates_are_closed(file: Path) -> None:
    actions = re.findall(r"\{\{-? *(\w+)", file.read_text())
    opened = sum(actions.count(word) for word in ("if", "with", "range", "define"))
    assert opened == actions.count("end")


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in project
    assert (CHART / "rules.yml").resolve() == ROOT / "deployments" / "prometheus" / "rules.yml"
    for name in VALUES:
        lock = (ROOT / "requirements" / f"{_merged(name)['image']['tag']}.lock").read_text()
        assert f"\nray=={_merged(name)['rayVersion']} " in lock


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("plain", [True, False])
def test_helm_renders_what_kubernetes_takes(name: str, plain: bool, tmp_path: Path) -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("Helm is not installed")
    options = ["-f", str(CHART / name)]
    if not plain:
        changes = (
            "monitoring.serviceMonitor=true",
            "monitoring.rules=true",
            "monitoring.labels.release=prometheus",
            "storage.existingClaim=mine",
            "redis.address=redis.example:6379",
            "image.pullSecrets[0].name=registry",
        )
        options += [argument for change in changes for argument in ("--set", change)]

    def run(*command: str) -> str:
        done = subprocess.run([helm, *command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "0 chart(s) failed" in run("lint", "--strict", str(CHART))
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(run("template", "choir", str(CHART)))
    kinds = set()
    for document in documents(rendered):
        kinds.add(document["kind"])
        if document["kind"] == "RayService":
            check_ray_service(document)
            check_application(yaml.safe_load(document["spec"]["serveConfigV2"]))
        elif document["kind"] not in MONITORING:
            check_core(document)
    expected = {"RayService", "PodDisruptionBudget", "NetworkPolicy", "Service"}
    assert kinds == expected | ({"PersistentVolumeClaim", "StatefulSet"} if plain else MONITORING)
