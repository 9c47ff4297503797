"""The figures of a run as they are now, and its page, in its folder or wherever somebody wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.errors import ApplianceError
from appliance.evaluation.judging import judges_of
from appliance.evaluation.runs import finished, scoring_of_run
from appliance.files import write_bytes, write_whole
from appliance.knowledge.forgetting import REPORT
from appliance.workspace import Workspace
from eval.page import Page, page, to_html, to_markdown
from eval.run import RunResult, load
from eval.summary import summarise
from eval.utility import Scoring


def figures(workspace: Workspace, run: sa.Row[Any]) -> tuple[RunResult, Scoring]:
    """A finished run with the summary of its outcomes by today's prices, worths and experts' scores. Raises like `finished`."""
    result = finished(workspace, run)
    scoring = scoring_of_run(workspace, run, result.items)
    summary = {**run.summary, **summarise(result.items, result.outcomes, scoring)}
    return RunResult(result.folder, result.items, result.outcomes, summary), scoring


def page_of(workspace: Workspace, run: sa.Row[Any], format: str = "svg") -> tuple[Page, RunResult]:
    """The page of a finished run and what it was made of. Raises UsageError if it is not finished, EvalError on damaged files."""
    result, scoring = figures(workspace, run)
    settings = run.settings
    facts = {
        "run": run.id,
        "data set": f"{run.dataset}@{run.dataset_version}",
        "questions": str(run.summary["n"]),
        "finished": f"{run.finished_at:%Y-%m-%d %H:%M} UTC",
        "generation": str(settings.get("generation")),
        "adapters": ", ".join(settings.get("adapters", {}).values()) or "none",
        "router": str(settings.get("router")),
        "longest answer": f"{settings.get('max_tokens')} tokens",
    }
    given = {(item, outcome.text) for (item, _), outcome in result.outcomes.items()}
    if scored := len(given & scoring.experts.keys()):
        facts["scored by experts"] = f"{scored} answers, whose scores take the place of the metric"
    if workspace.config.eval.currency:
        facts["costs in"] = workspace.config.eval.currency
    judges = judges_of(workspace, run.id, result)
    return page(result, f"Evaluation of {run.dataset}", scoring, facts, "png" if format == "png" else "svg", judges), result


def write_page(workspace: Workspace, run: sa.Row[Any], html: Path | None, markdown: Path | None) -> list[Path]:
    """Write a run's page to the files given; the plots of Markdown go beside it. Raises like `page_of`, and ApplianceError if it cannot be
    written."""
    written: list[Path] = []
    try:
        if html is not None:
            write_whole(html, to_html(page_of(workspace, run)[0]))
            written.append(html)
        if markdown is not None:
            text, plots = to_markdown(page_of(workspace, run, "png")[0], markdown.stem)
            for name, data in plots.items():
                write_bytes(markdown.with_name(name), data)
            write_whole(markdown, text)
            written += [markdown, *(markdown.with_name(name) for name in plots)]
    except OSError as error:
        raise ApplianceError(f"{error.filename}: {error.strerror}; name a file in a folder that can be written") from error
    return written


def keep_page(workspace: Workspace, run: sa.Row[Any]) -> list[Path]:
    """Write a run's page into its folder, where deletions reach it."""
    folder = workspace.root / run.path
    while True:
        before = load(folder).outcomes
        written = write_page(workspace, run, folder / f"{REPORT}.html", folder / f"{REPORT}.md")
        # A document may have been deleted meanwhile, before there was a page to take its text from.
        if load(folder).outcomes == before:
            return written
