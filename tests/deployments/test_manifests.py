"""What `kubectl apply` and `serve deploy` would take: core kinds by Kubernetes' own schemas, Ray's part by Ray's."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.config.settings import Settings
from serve.graph.app import build
from serve.ray_options import fast_serve

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
KUBERAY = sorted((DEPLOYMENTS / "kuberay").glob("*.yaml"))
SERVICES = sorted((DEPLOYMENTS / "kuberay").glob("rayservice-*.yaml"))

RAY_SERVICE = {"upgradeStrategy", "serveConfigV2", "rayClusterConfig"}
RAY_CLUSTER = {"rayVersion", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"rayStartParams", "template"}
WORKERS = GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}
"""Fields of KubeRay's resource that are used here. Its schema is in no package, so these are from its reference."""

OF_A_SMALL_MACHINE = ("CHECK_TIMEOUT_S", "LOG_TO_STDERR")
"""Options that do not matter in a cluster, whose machines have time, and whose logs are read from stderr."""


def documents(file: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]


def check_core(document: dict[str, Any]) -> None:
    """Raises for a field that Kubernetes does not know, or a value that it does not take."""
    kubernetes_validate.validate(document, "1.31", strict=True)


def pods(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> its pod's spec."""
    cluster = service["spec"]["rayClusterConfig"]
    groups = {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    return {
        name: group["template"]["spec"]
        for name, group in {"head": cluster["headGroupSpec"], **groups}.items()
    }


def check_ray_service(service: dict[str, Any]) -> None:
    """The structure of a RayService: the fields, and each pod by Kubernetes' schema."""
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert set(service["spec"]) <= RAY_SERVICE
    cluster = service["spec"]["rayClusterConfig"]
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["gcsFaultToleranceOptions"]) <= {"redisAddress", "redisPassword"}
    assert set(cluster["headGroupSpec"]) <= GROUP
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for name, spec in pods(service).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        check_core(pod)
        (container,) = spec["containers"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert "nvidia.com/gpu" not in container["resources"]["limits"] or name != "head"
        volumes = {each["name"] for each in spec["volumes"]}
        assert {each["name"] for each in container["volumeMounts"]} == volumes
        check_environment(container["env"])


def check_environment(entries: list[dict[str, Any]]) -> None:
    """Ray's options are those that Choir gives a Ray of its own, and Choir's settings exist."""
    given = {each["name"]: each.get("value") for each in entries}
    with mock.patch.dict(os.environ, {"CHOIR_HAPROXY": "0"}):
        wanted = fast_serve(Path("/tmp"))
    options = {name: value for name, value in given.items() if name.startswith("RAY_SERVE_")}
    assert options == {name: value for name, value in wanted.items() if name in options}
    assert {name for name in wanted if not name.endswith(OF_A_SMALL_MACHINE)} == set(options)
    settings = {name.removeprefix("CHOIR_").lower() for name in given if name.startswith("CHOIR_")}
    assert settings <= set(Settings.model_fields)
    assert {"database_url", "admin_token"} <= settings


def check_application(config: dict[str, Any]) -> None:
    """What `serve deploy` is given: Ray's own schema, Choir's builder, and settings that exist."""
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    with mock.patch.dict(os.environ, {"CHOIR_ADMIN_TOKEN": "secret"}):
        settings = Settings.load(application.args)
    assert settings.shared_store or settings.host == "127.0.0.1"


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_core_kinds_are_sound(file: Path) -> None:
    kinds = {each["kind"] for each in documents(file)}
    for document in documents(file):
        if document["kind"] != "RayService":
            check_core(document)
    if file.name == "shared.yaml":
        wanted = {"PersistentVolumeClaim", "StatefulSet", "Service", "PodDisruptionBudget"}
        assert kinds == wanted | {"NetworkPolicy"}


@pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.name)
def test_ray_services_have_the_fields_of_kuberay_and_sound_pods(file: Path) -> None:
    (service,) = documents(file)
    check_ray_service(service)


@pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.name)
def test_ray_reads_the_application_of_a_ray_service(file: Path) -> None:
    (service,) = documents(file)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    check_application(config)
    (application,) = config["applications"]
    # One engine a worker, and the disk is where the settings look for it.
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["replicas"] == application["args"]["replicas"]
    mounts = pods(service)["engines"]["containers"][0]["volumeMounts"]
    assert application["args"]["store"].startswith(mounts[0]["mountPath"])


def test_ray_reads_the_application_for_a_cluster_that_runs_already() -> None:
    check_application(yaml.safe_load((DEPLOYMENTS / "serve.yaml").read_text(encoding="utf-8")))


def test_what_the_manifests_refer_to_is_there() -> None:
    shared = documents(DEPLOYMENTS / "kuberay" / "shared.yaml")
    names = {(each["kind"], each["metadata"]["name"]) for each in shared}
    for file in SERVICES:
        (service,) = documents(file)
        redis = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
        assert ("Service", redis.partition(":")[0]) in names
        for spec in pods(service).values():
            claims = [
                v["persistentVolumeClaim"]["claimName"]
                for v in spec["volumes"]
                if "persistentVolumeClaim" in v
            ]
            assert all(("PersistentVolumeClaim", claim) in names for claim in claims)
            assert claims
