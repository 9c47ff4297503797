"""`appliance router`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import click

from appliance.cli.session import Progress, Session, as_option, domain_option, emit, held, json_option, pass_session, say, table
from appliance.errors import DONE, GATE_MISSED


@click.group()
def router() -> None:
    """Train, compare, explain and watch what decides between the arms."""


@router.command()
@json_option
@pass_session
def show(session: Session, as_json: bool) -> None:
    """What decides in each domain, and the thresholds of the rules."""
    from appliance.routing.routers import Routers
    from appliance.service import router_of, thresholds

    routing = router_of(session.workspace)
    settings = asdict(thresholds(session.workspace))
    live = {domain: routing.of(domain).version for domain in session.workspace.domains()}
    routers = Routers(session.workspace.db)
    promoted = {domain: name for domain in live if (name := routers.live(domain)) is not None}
    unused = {domain: trouble for domain, name in promoted.items() if (trouble := routers.trouble(name))}
    data = {"router": routing.version, "domains": live, "unused": unused, "thresholds": settings}

    def human() -> None:
        table(("domain", "router"), live.items())
        for domain, trouble in unused.items():
            click.echo(f"the rules decide in {domain}: {trouble}")
        table(("threshold", "value"), settings.items(), title=routing.policy.version)

    emit(data, as_json, human)


@router.command()
@click.option("--run", "runs", multiple=True, required=True, help="An evaluation run over the domain's questions ('last'); repeatable.")
@domain_option
@click.option("--force", metavar="REASON", help="Let it decide without passing the gate; the reason is recorded.")
@click.option("--best-single", is_flag=True, help="If it misses the gate: let the best single arm decide, if that beats what decides now.")
@json_option
@pass_session
def train(session: Session, runs: tuple[str, ...], domain: str | None, force: str | None, best_single: bool, as_json: bool) -> int:
    """Learn which arm to choose from evaluation runs; it decides from then on if it beats the best single arm out of fold."""
    from appliance.routing.training import train_router, version_json
    from appliance.service import open_service

    service = open_service(session.workspace)
    with Progress() as progress:
        trained = train_router(service, runs, domain=domain, force=force, best_single=best_single, progress=progress)
    data = {**version_json(trained.version, trained.live), "why": trained.why, "notes": list(trained.notes)}

    def human() -> None:
        gate = trained.version.gate
        rows = [(arm, f"{worth:.3f}") for arm, worth in sorted(gate["arms"].items(), key=lambda entry: -entry[1])]
        table(("worth of", "mean"), [("the router", f"{gate['mean']:.3f}"), *rows, ("the best in hindsight", f"{gate['oracle']:.3f}")])
        click.echo(f"{trained.version.name} {'decides now' if trained.live else 'does not go live'}: {trained.why}")
        for note in trained.notes:
            click.echo(f"note: {note}")

    emit(data, as_json, human)
    return DONE if trained.live else GATE_MISSED


@router.command(name="list")
@domain_option
@json_option
@pass_session
def list_(session: Session, domain: str | None, as_json: bool) -> None:
    """Trained routers, oldest first."""
    from appliance.routing.routers import Routers
    from appliance.routing.training import version_json

    routers = Routers(session.workspace.db)
    versions = routers.versions(domain)
    rows = [version_json(version, routers.live(version.domain) == version.name) for version in versions]

    def human() -> None:
        shown = [
            (row["name"], "live" if row["live"] else "", "passed" if row["gate"]["passed"] else "missed", row["kind"], row["gate"]["why"])
            for row in rows
        ]
        table(("router", "", "gate", "kind", "measured"), shown)

    emit(rows, as_json, human)


@router.command()
@click.argument("version")
@click.option("--force", metavar="REASON", help="Also if it missed its gate; the reason is recorded.")
@json_option
@pass_session
def promote(session: Session, version: str, force: str | None, as_json: bool) -> int:
    """Let a trained router decide in its domain."""
    from appliance.routing.routers import Routers

    routers = Routers(session.workspace.db)
    found = routers.get(version)
    promoted = found.passed or force is not None
    if promoted:
        routers.promote(version, f"forced: {force}" if force is not None else "passed its gate")
    data = {"router": version, "domain": found.domain, "promoted": promoted, "gate": found.gate}
    text = f"{found.domain} → {version}" if promoted else f"{version} missed its gate and stays what it is: {found.gate['why']}"
    emit(data, as_json, lambda: click.echo(text))
    return DONE if promoted else GATE_MISSED


@router.command()
@domain_option
@json_option
@pass_session
def rollback(session: Session, domain: str | None, as_json: bool) -> None:
    """Go back to the router that decided before."""
    from appliance.routing.routers import Routers

    name = session.workspace.only_domain(domain)
    live = Routers(session.workspace.db).rollback(name)
    emit({"domain": name, "live": live}, as_json, lambda: click.echo(f"{name} → {live or 'the rules'}"))


@router.command()
@click.argument("question")
@domain_option
@click.option("--must-cite", is_flag=True, help="As if only answers whose citations are checked were wanted.")
@click.option("--max-latency-ms", type=click.FloatRange(min=0, min_open=True), help="As if the answer had to be there within this time.")
@as_option
@json_option
@pass_session
def explain(
    session: Session,
    question: str,
    domain: str | None,
    must_cite: bool,
    max_latency_ms: float | None,
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """What is decided for a question and why, what each arm promises and costs, and what would have changed the choice."""
    from appliance.evaluation.runs import evaluator
    from appliance.routing.explain import explained
    from appliance.service import open_service
    from appliance.types import Caller, Request
    from retrieval.types import Scope
    from router.types import Constraints

    service = open_service(session.workspace)
    request = Request(question, domain=domain, constraints=Constraints(must_cite, max_latency_ms))
    caller = Caller(Scope(None, held(labels, evaluator(service).scope.labels)))
    data = asyncio.run(explained(service, request, caller))
    emit(data, as_json, lambda: _show_explanation(data))


def _show_explanation(data: dict[str, Any]) -> None:
    decision = data["decision"]
    click.echo(f"{decision['arm']} in {decision['domain']} (rule {decision['rule']}, router {decision['router_version']})")
    for reason in decision["reasons"]:
        click.echo(f"  - {reason}")
    rows = [
        (
            arm,
            f"{told['utility'] if told['utility'] is not None else told['quality']:.3f}",
            "" if "value" not in told else f"{told['value']:.3f}",
            f"{told['cost']['latency_ms']:.0f}" + (" (assumed)" if told["cost"]["assumed"] else ""),
            f"{told['cost']['tokens']:.0f}",
            ", ".join(f"{part['means']} {part['adds']:+.3f}" for part in told.get("because", [])[:3]),
        )
        for arm, told in sorted(data["arms"].items(), key=lambda entry: -entry[1].get("value", entry[1].get("quality", 0.0)))
    ]
    table(("arm", "expected", "after cost", "ms", "tokens", "most of it from"), rows)
    for arm, why in decision["unavailable"].items():
        click.echo(f"  · not {arm}: {why}")
    changes = [(change["means"], f"{change['value']:.3f}", f"{change['to']:.3f}", change["arm"]) for change in data["changes"]]
    table(("what would have changed it", "is", "would be", "then"), changes)
    for condition in data["conditions"]:
        click.echo(f"  · {condition['arm']} if {condition['if']}")
    table(("feature", "value"), [(name, f"{value:g}") for name, value in decision["features"].items()])


@router.command()
@domain_option
@click.option("--days", type=click.IntRange(1, 180), default=30, show_default=True, help="How far back to look.")
@json_option
@pass_session
def drift(session: Session, domain: str | None, days: int, as_json: bool) -> None:
    """Compare the questions of now with those the router learnt from, and say when to label anew."""
    from appliance.routing.drift import drift as measured

    data = measured(session.workspace, session.workspace.only_domain(domain), days)

    def human() -> None:
        click.echo(f"{data['domain']}: router {data['router']}, {data['questions']} decisions in {days} days")
        table(("arm", "share"), [(arm, f"{share:.1%}") for arm, share in data["mix"].items()])
        table(("feature", "PSI", "KS", "state"), [(s["name"], f"{s['psi']:.3f}", f"{s['ks']:.3f}", s["state"]) for s in data["features"]])
        if "note" in data:
            click.echo(data["note"])
        for reason in data["relabel"]:
            click.echo(f"label anew: {reason}")

    emit(data, as_json, human)
    if data["relabel"]:
        say("label anew: appliance eval run over questions of now, then appliance router train")
