"""What must hold before an adapter version may become live."""

from __future__ import annotations

from appliance.adapters import AdapterVersion
from appliance.errors import ApplianceError, GateMissed
from appliance.models.store import ModelStore
from appliance.workspace import Workspace


def check_fit(workspace: Workspace, models: ModelStore, version: AdapterVersion) -> None:
    """Lint the files against the base the domain's engine runs, and require a lower dev loss than the base's.

    Raises ApplianceError (other base) or GateMissed listing every problem.
    """
    from finetune.version import lint_adapter

    name, engine = workspace.config.engine_of(version.domain)
    if engine.kind != "local":
        raise ApplianceError(
            f"engine {name} of {version.domain} is {engine.kind} and serves no adapters; name a local engine for the domain"
        )
    base = workspace.model(engine.base)
    base_hash = models.model_hash(base)
    if base_hash != version.base_hash:
        raise ApplianceError(
            f"{version.name} was trained for another base, {version.base} ({version.base_hash[:12]}); "
            f"engine {name} runs {engine.base} ({base_hash[:12]}); "
            "train a version for this base with `appliance tune`"
        )
    before, after = version.metrics.get("eval_loss_before"), version.metrics.get("eval_loss")
    if before is not None and after is not None and after >= before:
        raise GateMissed(
            f"{version.name} cannot go live: its loss on the dev questions is {after:.4f}, the base model's is {before:.4f}; "
            "train longer, or on more pairs"
        )
    problems = lint_adapter(version.path, models.path(base))
    if problems:
        raise GateMissed(f"{version.name} cannot go live: " + "; ".join(problems))
