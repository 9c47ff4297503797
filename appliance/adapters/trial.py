"""The way of a version into a trial: through the gate, then a share of the questions."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.adapters import canary as canaries
from appliance.adapters.canary import Canary
from appliance.adapters.gate_checks import GateResult, last_gate
from appliance.adapters.gates import Progress, check_fit, measure
from appliance.adapters.life import warn
from appliance.service import Service


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it: `canary` is None where the version missed the gate, `gate` where none was measured for it."""

    canary: Canary | None
    gate: GateResult | None


async def begin(service: Service, name: str, share: float | None = None, *, force: str | None = None, progress: Progress) -> Trial:
    """Start a canary of the version called `name` with `share` of the questions (default: [domains.NAME.canary]), if it passes the gate.

    A gate it passed against the version that is live now is not measured again. `force` is the reason to try it without; it is recorded.
    Raises UsageError and ApplianceError as `gates.promote` and `canary.start` do, Locked while another gate runs in the domain.
    """
    registry, workspace = service.registry, service.workspace
    version = registry.get(name)
    registry.check_adapter(version)
    check_fit(workspace, service.models, version)
    settings = workspace.config.domain(version.domain)
    gate = last_gate(workspace, name)
    if force is None:
        with workspace.db.lock(f"gate:{version.domain}") as lock:
            live = registry.live(version.domain)
            if gate is None or not gate.passed or gate.reference != (None if live is None else live.name):

                def beat(what: str, done: int, total: int) -> None:
                    lock.beat()
                    progress(what, done, total)

                gate = await measure(service, version, live, settings.gate, beat)
        if not gate.passed:
            return Trial(None, gate)
    await warn(registry, await service.engines.of(version.domain), version)
    return Trial(canaries.start(registry, name, settings.canary.share if share is None else share, force), gate)
