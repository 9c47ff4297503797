"""`appliance advise`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import UsageError
from router.advise import ALLOWED, ScenarioError, ScenarioInputs, advice_json
from router.advise import advise as recommend
from router.roi import RoiError, RoiInputs, roi

_FIGURES = tuple(RoiInputs.__dataclass_fields__)
_MET = {True: "yes", False: "no", None: "?"}


def _options(command: Any) -> Any:
    for name in reversed(_FIGURES):
        command = click.option(f"--{name.replace('_', '-')}", type=float, help="Figure of the return.")(command)
    for name, allowed in reversed(list(ALLOWED.items())):
        command = click.option(f"--{name.replace('_', '-')}", help=f"One of {', '.join(allowed)}.")(command)
    return command


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_options
@domain_option
@click.option(
    "--questions-per-year",
    type=click.FloatRange(min=0),
    help="Fills automated_tasks (these, times the share answered alone) and running_cost (these, times what an answer costs).",
)
@click.option(
    "--minutes-by-hand",
    type=click.FloatRange(min=0),
    help="What a person takes for a question. Fills process_speedup: the hours that those answered alone save, less their own latency.",
)
@click.option("--save", is_flag=True, help="Write the choice to the domain's configuration, where it is the router's prior.")
@json_option
@pass_session
def advise(
    session: Session,
    /,
    file: Path | None,
    domain: str | None,
    questions_per_year: float | None,
    minutes_by_hand: float | None,
    save: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Retrieval, fine-tuning, or both? From flags, from FILE.toml (with a [roi] table), or asked on a terminal.

    With --domain each rule is told what the domain's own data says, missing figures of the return are filled with what was measured, and
    the phases of adoption show what holds.
    """
    values, figures = _read(file)
    values |= {name: given[name] for name in ALLOWED if given[name] is not None}
    figures |= {name: given[name] for name in _FIGURES if given[name] is not None}
    if not values:
        if not sys.stdin.isatty():
            raise UsageError("no scenario given: name a TOML file, or flags such as --knowledge-update-frequency high")
        values = {name: click.prompt(name, type=click.Choice(allowed), err=True) for name, allowed in ALLOWED.items()}
    if save and domain is None:
        raise UsageError("--save needs --domain: the choice is written to that domain's configuration")
    measured = None if domain is None else _measured(session, domain)
    if minutes_by_hand is not None and questions_per_year is None:
        raise UsageError("--minutes-by-hand needs --questions-per-year: the hours saved are those of that many questions")
    if figures or questions_per_year is not None:
        figures = _filled(figures, measured, questions_per_year, minutes_by_hand)
    try:
        advice = recommend(ScenarioInputs.from_mapping(values))
        returns = roi(RoiInputs.from_mapping(figures)) if figures else None
    except (ScenarioError, RoiError) as error:
        raise UsageError(f"{file}: {error}" if file else str(error)) from error
    if save and domain is not None:
        session.workspace.check_domain(domain)
        session.workspace.save_setting(f"domains.{domain}.scenario", advice.choice)
        say(f"[domains.{domain}] scenario = {advice.choice!r} is now the router's prior")
    data = {**advice_json(advice, returns), "measured": measured, "roi_figures": figures or None}

    def human() -> None:
        click.echo(f"choice: {advice.choice}")
        table(("rule", "fired", "why"), [(rule.name, "yes" if rule.fired else "", rule.why) for rule in advice.rules])
        for conflict in advice.conflicts:
            click.echo(f"conflict: {conflict}")
        if returns is not None:
            table(("figure", "value"), figures.items())
            table(("return", "value"), data["roi"].items())
        if measured is not None:
            _show(measured)

    emit(data, as_json, human)


def _read(file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    if file is None:
        return {}, {}
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from error
    figures = values.pop("roi", {})
    if not isinstance(figures, dict):
        raise UsageError(f"{file}: roi: expected a table [roi] with {', '.join(_FIGURES)}")
    return values, figures


def _measured(session: Session, domain: str) -> dict[str, Any]:
    from appliance.routing.adoption import evidence

    return evidence(session.workspace, session.workspace.check_domain(domain))


def _filled(figures: dict[str, Any], measured: dict[str, Any] | None, questions: float | None, minutes: float | None) -> dict[str, Any]:
    """The figures with what was measured in place of those that are missing: `questions` are those of a year, `minutes` what a person takes
    for one. Raises UsageError where there is nothing to fill with."""
    known = {} if measured is None else measured["figures"]
    filled = {name: known[name] for name in ("gpu_hours", "data_volume") if known.get(name) is not None} | figures
    share, latency, price = (known.get(name) for name in ("answered_without_a_person", "latency_ms", "cost"))
    if questions is None:
        return filled
    if price is not None and "running_cost" not in figures:
        filled["running_cost"] = questions * price
    if "automated_tasks" in figures and minutes is None:
        return filled
    if share is None:
        raise UsageError("--questions-per-year needs --domain, and answers on record there: none was asked through the gateway yet")
    filled.setdefault("automated_tasks", questions * share)
    if minutes is not None and "process_speedup" not in figures:
        if latency is None:
            raise UsageError("--minutes-by-hand needs a finished evaluation run of --domain, for the latency of an answer")
        filled["process_speedup"] = questions * share * max(0.0, minutes / 60 - latency / 3_600_000)
    return filled


def _show(measured: dict[str, Any]) -> None:
    table(("rule about", "what your data says"), measured["rules"].items(), title=f"{measured['domain']}, run {measured['run'] or 'none'}")
    table(("measured", "value"), [(name, "not measured" if value is None else value) for name, value in measured["figures"].items()])
    for phase in measured["phases"]:
        rows = [
            (when, one["what"], "not measured" if one["measured"] is None else one["measured"], one["required"], _MET[one["met"]])
            for when in ("entry", "exit")
            for one in phase[when]
        ]
        table(("", "criterion", "measured", "required", "met"), rows, title=phase["phase"])
