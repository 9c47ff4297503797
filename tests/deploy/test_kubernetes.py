"""The Kubernetes manifests: what Kustomize makes of them has the right form, hangs together, and adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.admin.audit import _LAST
from appliance.config import Config
from appliance.jobs.worker import _GRACE
from appliance.settings import EngineConfig, GatewayConfig

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
OVERLAYS = ("base", "overlays/gpu", "overlays/postgresql")


@pytest.fixture(params=OVERLAYS)
def built(request: pytest.FixtureRequest, tool: Any, tmp_path: Path) -> Path:
    """One file with everything that is applied."""
    file = tmp_path / "all.yaml"
    file.write_text(tool("kubectl", "kustomize", FOLDER / request.param), "utf-8")
    return file


def _read(file: Path) -> dict[tuple[str, str], Any]:
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(file.read_text("utf-8"))}


def _workloads(items: dict[tuple[str, str], Any]) -> dict[str, Any]:
    found = {name: item["spec"]["template"] for (kind, name), item in items.items() if kind == "Deployment"}
    jobs = {name: item["spec"]["jobTemplate"]["spec"]["template"] for (kind, name), item in items.items() if kind == "CronJob"}
    return {**found, **jobs}


def test_the_form_is_that_of_kubernetes(built: Path, tool: Any) -> None:
    said = tool("kubernetes-validate", "--strict", built)
    assert said.count("passed") == len(_read(built))


def test_it_hangs_together(built: Path) -> None:
    items = _read(built)
    assert all(item["metadata"].get("namespace") == "appliance" for (kind, _), item in items.items() if kind != "Namespace")
    pods = {name: template["metadata"]["labels"] for name, template in _workloads(items).items()}
    for (kind, name), item in items.items():
        if kind == "Service":
            assert any(item["spec"]["selector"].items() <= labels.items() for labels in pods.values()), name
        if kind in ("PodDisruptionBudget", "Deployment"):
            assert any(item["spec"]["selector"]["matchLabels"].items() <= labels.items() for labels in pods.values()), name
        if kind == "HorizontalPodAutoscaler":
            target = item["spec"]["scaleTargetRef"]
            scaled = items[target["kind"], target["name"]]
            assert "replicas" not in scaled["spec"], "the autoscaler and the manifest would fight over the number"
            adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text("utf-8"))
            made = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
            assert {metric["pods"]["metric"]["name"] for metric in item["spec"]["metrics"]} <= made
    for name, template in _workloads(items).items():
        claims = {v["persistentVolumeClaim"]["claimName"] for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v}
        assert all(("PersistentVolumeClaim", claim) in items for claim in claims), name
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name


def test_every_container_is_confined(built: Path) -> None:
    for name, template in _workloads(_read(built)).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]} and "memory" in container["resources"]["limits"], name
            assert ":" in container["image"] and not container["image"].endswith(":latest"), name


def test_nothing_is_reached_that_is_not_named(built: Path) -> None:
    items = _read(built)
    deny = items["NetworkPolicy", "deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [engine] = items["NetworkPolicy", "engine"]["spec"]["ingress"]
    assert len(engine["from"]) == 2 and engine["ports"] == [{"port": 8000}]
    assert all(item["spec"].get("type", "ClusterIP") == "ClusterIP" for (kind, _), item in items.items() if kind == "Service")


def test_the_drain_times_add_up(built: Path) -> None:
    items = _read(built)
    data = items["ConfigMap", "gateway"]["data"]
    drain, grace = (float(data[f"APPLIANCE_GATEWAY__{name}_SECONDS"]) for name in ("DRAIN", "GRACE"))
    spec = items["Deployment", "gateway"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > drain + grace + _GRACE + _LAST
    probe = spec["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < drain
    spec = items["Deployment", "engine"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    words = [*container["args"], *_entry_point()]
    timeout = int(words[words.index("--shutdown-timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + timeout
    # The gateway's answers end before the engines that they come from could.
    assert timeout >= grace


def _entry_point() -> list[str]:
    line = (FOLDER.parent.parent / "docker" / "engine.Dockerfile").read_text("utf-8").split("ENTRYPOINT")[1]
    found: list[str] = yaml.safe_load(line)
    return found


def test_the_settings_are_ours(built: Path) -> None:
    for name in _read(built)["ConfigMap", "gateway"]["data"]:
        section, *_, leaf = name.removeprefix("APPLIANCE_").lower().split("__")
        model = {"engines": EngineConfig, "gateway": GatewayConfig}[section]
        assert section in Config.model_fields and leaf in model.model_fields, name
