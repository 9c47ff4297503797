"""The Kubernetes manifests: what Kustomize makes of them has the right form, hangs together, and adds up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.admin.audit import _LAST
from appliance.config import Config
from appliance.engines.vllm_started import ALWAYS, ON_CPU
from appliance.jobs.worker import _GRACE
from appliance.models.refs import ModelRef
from appliance.settings import EngineConfig, GatewayConfig

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
ADAPTERS = ("overlays/adapters", "overlays/gpu-adapters")
OVERLAYS = ("base", "overlays/gpu", "overlays/postgresql", *ADAPTERS)


def _build(tool: Any, folder: Path, tmp_path: Path) -> Path:
    """One file with everything that is applied."""
    file = tmp_path / "all.yaml"
    file.write_text(tool("kubectl", "kustomize", folder), "utf-8")
    return file


@pytest.fixture(params=OVERLAYS)
def built(request: pytest.FixtureRequest, tool: Any, tmp_path: Path) -> Path:
    return _build(tool, FOLDER / request.param, tmp_path)


def _read(file: Path) -> dict[tuple[str, str], Any]:
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(file.read_text("utf-8"))}


def _workloads(items: dict[tuple[str, str], Any]) -> dict[str, Any]:
    found = {name: item["spec"]["template"] for (kind, name), item in items.items() if kind in ("Deployment", "StatefulSet")}
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
        if kind in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            assert any(item["spec"]["selector"]["matchLabels"].items() <= labels.items() for labels in pods.values()), name
        if kind == "HorizontalPodAutoscaler":
            target = item["spec"]["scaleTargetRef"]
            scaled = items[target["kind"], target["name"]]
            assert "replicas" not in scaled["spec"], "the autoscaler and the manifest would fight over the number"
            adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text("utf-8"))
            made = {rule["name"]["as"] for rule in adapter["rules"]["external"]}
            assert {metric["external"]["metric"]["name"] for metric in item["spec"]["metrics"]} <= made
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
    spec = _workloads(items)["engine"]["spec"]
    container = spec["containers"][0]
    words = [*container["args"], *_entry_point()]
    timeout = int(words[words.index("--shutdown-timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + timeout
    # The gateway's answers end before the engines that they come from could.
    assert timeout >= grace


# What one vLLM begins at once (--max-num-seqs of vLLM 0.32 on a CPU, vllm/engine/arg_utils.py); more would wait in its own queue.
_MAX_NUM_SEQS = 128


def test_engines_are_added_before_answers_wait(built: Path) -> None:
    items = _read(built)
    running = int(items["ConfigMap", "gateway"]["data"]["APPLIANCE_GATEWAY__MAX_RUNNING"])
    if ("HorizontalPodAutoscaler", "engine") not in items:
        return
    spec = items["HorizontalPodAutoscaler", "engine"]["spec"]
    [metric] = spec["metrics"]
    target = int(metric["external"]["target"]["averageValue"])
    # One gateway alone brings all engines into being, each with enough to do, and no engine gets more than it begins at once.
    assert spec["minReplicas"] * target < running >= spec["maxReplicas"] * target
    assert running / spec["minReplicas"] <= _MAX_NUM_SEQS


def test_engines_are_added_for_what_is_generated_alone(tool: Any, tmp_path: Path) -> None:
    [rule] = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text("utf-8"))["rules"]["external"]
    series = [
        {"series": f'appliance_answers_{state}{{namespace="{namespace}", pod="{pod}", queue="{queue}"}}', "values": str(count)}
        for namespace, pod, queue, state, count in (
            *(("appliance", pod, "generating", state, count) for pod in "ab" for state, count in (("running", 20), ("queued", 3))),
            *(("appliance", "a", other, state, 100) for other in ("deciding", "embedding") for state in ("running", "queued")),
            *(("elsewhere", "a", "generating", state, 1000) for state in ("running", "queued")),
        )
    ]
    expected = {"expr": rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="appliance"'), "eval_time": "1m"}
    test = {"input_series": series, "promql_expr_test": [{**expected, "exp_samples": [{"labels": "{}", "value": 46}]}]}
    file = tmp_path / "adapter_test.yml"
    file.write_text(yaml.safe_dump({"tests": [test]}), "utf-8")
    assert "SUCCESS" in tool("promtool", "test", "rules", file)


def test_engines_are_started_as_the_appliance_starts_them(built: Path) -> None:
    container = _workloads(_read(built))["engine"]["spec"]["containers"][0]
    ours = container["image"].startswith("registry.example.org/")
    words = " ".join([*(_entry_point() if ours else []), *container["args"]])
    assert " ".join(ALWAYS) in words and (" ".join(ON_CPU) in words) is ours


@pytest.mark.parametrize("overlay", ADAPTERS)
def test_every_engine_can_be_told_to_load_an_adapter(overlay: str, tool: Any, tmp_path: Path) -> None:
    items = _read(_build(tool, FOLDER / overlay, tmp_path))
    prefix = "APPLIANCE_ENGINES__DEFAULT__"
    settings = {
        name.removeprefix(prefix): value for name, value in items["ConfigMap", "gateway"]["data"].items() if name.startswith(prefix)
    }
    assert settings["KIND"] == "vllm" and "URL" not in settings and not any(kind == "HorizontalPodAutoscaler" for kind, _ in items)
    engines = items["StatefulSet", "engine"]["spec"]
    service = items["Service", engines["serviceName"]]
    assert service["spec"]["clusterIP"] == "None"
    names = [f"http://engine-{number}.{engines['serviceName']}:8000/v1" for number in range(engines["replicas"])]
    assert json.loads(settings["URLS"]) == names
    spec = engines["template"]["spec"]
    container = spec["containers"][0]
    assert "--enable-lora" in container["args"] and f"--max-lora-rank={settings['MAX_LORA_RANK']}" in container["args"]
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"} in container["env"]
    # The same weights as the gateway's, and adapters at the paths that the gateway names; all of it to be read only.
    assert container["args"][:2] == ["--model", f"/models/{ModelRef.parse(settings['BASE']).slug}"]
    mounted = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounted["workspace"]["mountPath"] == "/workspace/adapters" and mounted["workspace"]["subPath"] == "adapters"
    assert mounted["models"]["mountPath"] == "/models" and mounted["models"]["readOnly"] and mounted["workspace"]["readOnly"]
    for volume in spec["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["readOnly"] and items["PersistentVolumeClaim", claim["claimName"]]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_of_several_gateways_that_make_the_workspace_the_later_goes_on(tmp_path: Path) -> None:
    deployment = next(
        item for item in yaml.safe_load_all((FOLDER / "base" / "gateway.yaml").read_text("utf-8")) if item["kind"] == "Deployment"
    )
    [setup] = deployment["spec"]["template"]["spec"]["initContainers"]
    # The other one makes it after this one looked, and before it began.
    stand_in = tmp_path / "appliance"
    stand_in.write_text('#!/bin/sh\nif [ "$1" = init ]; then touch "$2/appliance.toml"; exit 2; fi\necho "$@"\n', "utf-8")
    stand_in.chmod(0o755)
    command = [*setup["command"], setup["args"][0].replace("/workspace", str(tmp_path))]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout) == (0, "model pull\n"), done.stderr


def test_prometheus_finds_what_it_scrapes(tool: Any, tmp_path: Path) -> None:
    """The services that its configuration names exist, and what `kubectl apply -k deploy/monitoring` makes has the right form."""
    monitoring = FOLDER.parent / "monitoring"
    items = _read(_build(tool, FOLDER / "base", tmp_path))
    for job in yaml.safe_load((monitoring / "kubernetes.yml").read_text("utf-8"))["scrape_configs"]:
        [found] = job["dns_sd_configs"]
        [name] = found["names"]
        service, namespace, _ = name.split(".")
        spec = items["Service", service]["spec"]
        assert namespace == "appliance" and spec["clusterIP"] == "None" and spec["ports"][0]["port"] == found["port"]
    said = tool("kubernetes-validate", "--strict", _build(tool, monitoring, tmp_path))
    assert said.count("passed") == 2


def _entry_point() -> list[str]:
    line = (FOLDER.parent.parent / "docker" / "engine.Dockerfile").read_text("utf-8").split("ENTRYPOINT")[1]
    found: list[str] = yaml.safe_load(line)
    return found


def test_the_settings_are_ours(built: Path) -> None:
    for name in _read(built)["ConfigMap", "gateway"]["data"]:
        section, *_, leaf = name.removeprefix("APPLIANCE_").lower().split("__")
        model = {"engines": EngineConfig, "gateway": GatewayConfig}[section]
        assert section in Config.model_fields and leaf in model.model_fields, name
