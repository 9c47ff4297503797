"""`appliance adapter`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.canary import canary, retrain
from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.cli.stale import stale
from appliance.errors import DONE, GATE_MISSED, AlteredFiles, ApplianceError, UsageError

if TYPE_CHECKING:
    from appliance.adapters.gate_checks import GateResult
    from appliance.adapters.gates import Promotion
    from appliance.adapters.registry import AdapterVersion, Registry
    from appliance.service import Service


@click.group()
def adapter() -> None:
    """List, compare, promote, roll back and remove adapters."""


for trying in (canary, retrain, stale):
    adapter.add_command(trying)


def _registry(session: Session) -> Registry:
    from appliance.adapters.registry import Registry

    return Registry(session.workspace)


@adapter.command(name="list")
@domain_option
@json_option
@pass_session
def list_adapters(session: Session, domain: str | None, as_json: bool) -> None:
    """Every version; the live adapter of each domain and the models that engines have as base are marked."""
    from appliance.adapters.gate_checks import last_gate

    registry = _registry(session)
    if domain:
        session.workspace.check_domain(domain)
    live = registry.in_use()
    deleted = registry.deleted()
    rows: list[dict[str, Any]] = []
    for version in registry.versions(domain):
        gate = last_gate(session.workspace, version.name)
        rows.append(
            {
                "version": version.name,
                "domain": version.domain,
                "live": version.name in live,
                "kind": version.kind,
                "method": version.method,
                "dataset": f"{version.dataset}@{version.dataset_version}",
                "eval_loss": version.metrics.get("eval_loss"),
                "gate": None if gate is None else "passed" if gate.passed else "missed",
                "deleted_documents": [key.id for key in deleted.get(version.name, ())],
                "created_at": version.created_at.isoformat(timespec="seconds"),
            }
        )
    columns = ("version", "live", "kind", "method", "dataset", "eval_loss", "gate", "created_at")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))
    for row in rows:
        if row["deleted_documents"]:
            say(f"{row['version']} contains deleted text, of {', '.join(row['deleted_documents'])}; train it again without")


@adapter.command(name="show")
@click.argument("version")
@click.option("--card", is_flag=True, help="Print its card, in Markdown: the README.md in its folder as it would be written now.")
@json_option
@pass_session
def show_adapter(session: Session, version: str, card: bool, as_json: bool) -> None:
    """Everything recorded about a version: base, data, documents with their hashes, settings, figures, gates.

    Of one that is live or on trial also what keeps it from being served by its domain's engine as it is configured now.
    """
    from appliance.adapters.card import card_text, facts, moves
    from appliance.adapters.gate_checks import gates_of

    registry = _registry(session)
    found = registry.get(version)
    if card:
        text = card_text(registry, found)
        emit({"version": version, "card": text}, as_json, lambda: click.echo(text))
        return
    gates = gates_of(session.workspace, version)
    problems = _problems(session, registry, found)
    data = {**facts(registry, found), "gates": [gate.to_json() for gate in gates], "went_live": moves(registry, found)}
    data["problems"] = problems
    long = ("document_hashes", "documents", "gates", "problems")
    emit(data, as_json, lambda: table(("what", "value"), [(name, value) for name, value in data.items() if name not in long]))
    if problems:
        say(f"{version} is not served: {'; '.join(problems)}")
    if gates and not as_json:
        show_gate(gates[-1])


def _problems(session: Session, registry: Registry, version: AdapterVersion) -> list[str] | None:
    """What keeps it from being served; None where that was not looked at."""
    from appliance.adapters.canary import candidates
    from appliance.adapters.gates import lint as problems_of
    from appliance.models.store import ModelStore

    if version.kind == "model" or version.name not in registry.in_use() | candidates(session.workspace.db):
        return None
    try:
        registry.check(version)
        return problems_of(session.workspace, ModelStore.default(), version)
    except ApplianceError as error:
        return [str(error)]


@adapter.command()
@click.argument("first")
@click.argument("second")
@json_option
@pass_session
def diff(session: Session, first: str, second: str, as_json: bool) -> None:
    """What differs between two versions: base, data, documents, settings, libraries, figures."""
    from appliance.adapters.card import differences

    registry = _registry(session)
    rows = differences(registry, registry.get(first), registry.get(second))

    def human() -> None:
        if rows:
            table(("what", first, second), [list(row.values()) for row in rows])
        else:
            click.echo(f"{first} and {second} do not differ" if first != second else f"{first} is one version; name two that differ")

    emit(rows, as_json, human)


@adapter.command()
@click.argument("version")
@click.option("--kind", type=click.Choice(["local", "vllm"]), help="By the rules of this kind of engine (default: its domain's engine).")
@json_option
@pass_session
def lint(session: Session, version: str, kind: Any, as_json: bool) -> int:
    """What keeps VERSION from being served: altered files, tensors that do not fit the base, variants the engine does not take.

    Exits 4 if anything does.
    """
    from appliance.adapters.gates import lint as problems_of
    from appliance.models.store import ModelStore

    registry = _registry(session)
    found = registry.get(version)
    try:
        registry.check(found)
        problems = problems_of(session.workspace, ModelStore.default(), found, kind)
    except AlteredFiles as error:
        # What is no longer what was registered is not looked into.
        problems = [str(error)]
    data = {"version": version, "problems": problems}
    emit(data, as_json, lambda: click.echo("\n".join(problems) or f"{version} can be served"))
    return GATE_MISSED if problems else DONE


@adapter.command()
@click.argument("version")
@click.option("--force", is_flag=True, help="Make it live although it missed the gate, or without measuring; --why is recorded.")
@click.option("--why", help="The reason for --force.")
@json_option
@pass_session
def promote(session: Session, version: str, force: bool, why: str | None, as_json: bool) -> int:
    """Make VERSION the live adapter of its domain if it passes the domain's gate ([domains.NAME.gate]).

    Exits 4 with the table if it does not.
    """
    from appliance.service import open_service

    if force and not (why or "").strip():
        raise UsageError("--force needs a reason, which is recorded: --why TEXT")
    if why is not None and not force:
        raise UsageError("--why is the reason for --force; give both or neither")
    done = through_gate(open_service(session.workspace), version, why if force else None)
    emit(promotion_json(done), as_json, lambda: print_promotion(done))
    return promotion_code(done)


def through_gate(service: Service, version: str, force: str | None = None) -> Promotion:
    """Promote with a progress bar; see `appliance.adapters.gates.promote`."""
    from appliance.adapters.gates import promote as promoted

    async def go(progress: Progress) -> Promotion:
        try:
            return await promoted(service, version, force=force, progress=progress)
        finally:
            await service.answering.close()

    with Progress() as progress:
        return asyncio.run(go(progress))


def promotion_json(done: Promotion) -> dict[str, Any]:
    """What a promotion did, as `adapter promote --json` prints it."""
    return {
        "domain": done.version.domain,
        "version": done.version.name,
        "promoted": done.promoted,
        "why": done.why,
        "gate": None if done.gate is None else done.gate.to_json(),
    }


def print_promotion(done: Promotion) -> None:
    """The gate's table and what came of it."""
    if done.gate is not None:
        show_gate(done.gate)
    click.echo(f"{done.version.domain} → {done.version.name}" if done.promoted else f"{done.version.name} does not go live")


def promotion_code(done: Promotion) -> int:
    """The exit code; says on stderr how to go on where the gate was missed."""
    if done.promoted:
        return DONE
    name = done.version.name
    say(f"{name} missed the gate; if it must go live all the same: appliance adapter promote {name} --force --why TEXT")
    return GATE_MISSED


def show_gate(gate: GateResult) -> None:
    """Print the gate's table."""
    rows = [
        (
            check.name,
            check.status,
            check.measure,
            check.n or None,
            check.candidate,
            check.reference,
            None if check.low is None else f"{check.difference:+.3f} [{check.low:+.3f}, {check.high:+.3f}]",
            check.required,
            check.note,
        )
        for check in gate.checks
    ]
    heading = f"gate {gate.id}: {'passed' if gate.passed else 'missed'}, compared with {gate.reference or 'the base model'}"
    table(("check", "result", "measure", "n", "version", "reference", "difference", "required", "note"), rows, heading)
    if gate.left_out:
        click.echo("left out: " + ", ".join(f"{count} {reason}" for reason, count in gate.left_out.items()))


@adapter.command()
@domain_option
@json_option
@pass_session
def rollback(session: Session, domain: str | None, as_json: bool) -> None:
    """Go back to the adapter that was live before the live one was promoted; once more goes further back.

    The alias stays where it is if the files of that version are missing or altered, or do not fit the domain's engine (then exits 4).
    """
    from appliance.adapters.gates import rollback as rolled_back
    from appliance.models.store import ModelStore

    name = session.workspace.only_domain(domain)
    version = rolled_back(_registry(session), ModelStore.default(), name)
    live = version.name if version else None
    emit({"domain": name, "live": live}, as_json, lambda: click.echo(f"{name} → {live or 'no adapter'}"))


@adapter.command()
@click.argument("version")
@click.option("--force", is_flag=True, help="Also if it is live, on trial or named by a job, or others were trained further from it.")
@json_option
@pass_session
def remove(session: Session, version: str, force: bool, as_json: bool) -> None:
    """Delete a version with its files. Its name stays in the history of its domain."""
    removed = _registry(session).remove(version, force=force)
    emit({"removed": removed.name, "domain": removed.domain}, as_json, lambda: click.echo(f"{removed.name} is removed"))
