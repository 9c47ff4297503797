"""What must hold before an adapter version may become live."""

from __future__ import annotations

from appliance.adapters import AdapterVersion
from appliance.errors import ApplianceError, GateMissed
from appliance.models.store import ModelStore
from appliance.workspace import Workspace


def check_fit(workspace: Workspace, models: ModelStore, version: AdapterVersion) -> None:
    """Lint the files against the base the domain's engine runs. Raises ApplianceError (other base) or GateMissed listing every problem."""
    from finetune.version import lint_adapter

    name, engine = workspace.config.engine_of(version.domain)
    if engine.kind != "local":
        raise ApplianceError(f"engine {name} of {version.domain} is {engine.kind} and serves no adapters; name a local engine for the domain")
    base = workspace.model(engine.base)
    base_hash = models.model_hash(base)
    if base_hash != version.base_hash:
        raise ApplianceError(
            f"{version.name} was trained for {version.base} ({version.base_hash[:12]}), engine {name} runs {engine.base} ({base_hash[:12]}); "
            "train a version for this base with `appliance tune`"
        )
    problems = lint_adapter(version.path, models.path(base))
    if problems:
        raise GateMissed(f"{version.name} cannot go live: " + "; ".join(problems))
